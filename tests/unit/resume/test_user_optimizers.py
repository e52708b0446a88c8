"""Optimizers in a model's attributes are found, and restored when they have variables."""

from types import SimpleNamespace

import numpy as np
import pytest

from spark_tensorflow_distributor import CheckpointError
from spark_tensorflow_distributor.resume import user_optimizers


class Optimizer:
    """Creates its variables in ``build``, as Keras' optimizers do."""

    def __init__(self):
        self.variables = [np.zeros(())]

    def build(self, shapes):
        self.variables += [np.zeros(shape) for shape in shapes]


@pytest.fixture(autouse=True)
def keras(monkeypatch):
    package = SimpleNamespace(optimizers=SimpleNamespace(Optimizer=Optimizer))
    monkeypatch.setattr(user_optimizers, "keras_packages", lambda: [package])


def assign(optimizer, values):
    for variable, value in zip(optimizer.variables, values, strict=True):
        variable[...] = value


def test_every_optimizer_but_the_compiled_one_is_found_once():
    first, second, compiled = Optimizer(), Optimizer(), Optimizer()
    model = SimpleNamespace(optimizer=compiled, also=compiled, pair=[first, {"b": second}], again=first, name="gan")
    assert user_optimizers.user_optimizers(model) == {"again": first, "pair[1]['b']": second}


def test_state_is_restored_at_once_or_when_the_variables_exist():
    built, waiting = Optimizer(), Optimizer()
    built.build([(2,)])
    state = [np.array(3.0), np.array([1.0, 2.0])]
    user_optimizers.restore({"built": built, "waiting": waiting}, {"built": state, "waiting": state}, assign)
    np.testing.assert_array_equal(built.variables[1], state[1])
    assert len(waiting.variables) == 1
    waiting.build([(2,)])
    np.testing.assert_array_equal(waiting.variables[1], state[1])
    assert "build" not in vars(waiting)


def test_the_state_of_other_optimizers_is_rejected():
    with pytest.raises(CheckpointError, match="the optimizers a, but this model has none"):
        user_optimizers.restore({}, {"a": []}, assign)
    waiting = Optimizer()
    user_optimizers.restore({"a": waiting}, {"a": [np.zeros(()), np.zeros(3)]}, assign)
    with pytest.raises(CheckpointError, match="other shapes"):
        waiting.build([(2,)])
