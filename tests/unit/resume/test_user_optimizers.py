"""Optimizers in a model's attributes are found, and restored when they have variables."""

from types import SimpleNamespace

import numpy as np
import pytest

from spark_tensorflow_distributor import CheckpointError
from spark_tensorflow_distributor.resume import user_optimizers
from spark_tensorflow_distributor.training import keras_api


class Optimizer:
    """Creates its variables in ``build``, as Keras' optimizers do."""

    def __init__(self, **held):
        self.variables = [np.zeros(())]
        vars(self).update(held)

    def build(self, shapes):
        self.variables += [np.zeros(shape) for shape in shapes]


class Layer:
    def __init__(self, **held):
        vars(self).update(held)


@pytest.fixture(autouse=True)
def keras(monkeypatch):
    package = SimpleNamespace(optimizers=SimpleNamespace(Optimizer=Optimizer), layers=SimpleNamespace(Layer=Layer))
    for module in (keras_api, user_optimizers):
        monkeypatch.setattr(module, "keras_packages", lambda: [package])


def assign(optimizer, values):
    for variable, value in zip(optimizer.variables, values, strict=True):
        variable[...] = value


def unknown(name, optimizer):
    """It is not known for which variables the optimizer was built."""


def test_every_optimizer_but_the_compiled_one_is_found_once():
    first, second, compiled = Optimizer(), Optimizer(), Optimizer()
    model = SimpleNamespace(optimizer=compiled, also=compiled, pair=[first, {"b": second}], again=first, name="gan")
    assert user_optimizers.user_optimizers(model) == {"again": first, "pair[1]['b']": second}


def test_the_optimizers_of_layers_and_within_optimizers_are_found():
    inner, second, nested, deep = Optimizer(), Optimizer(), Optimizer(), Optimizer()
    net = Layer(optimizer=nested, layers=[Layer(by_layer={Layer(): deep})])
    net.parent = net
    model = SimpleNamespace(_layers=[net], net=net, optimizer=Optimizer(inner=inner), other=Optimizer(of=[second]))
    found = user_optimizers.user_optimizers(model)
    assert found == {
        "other": model.other,
        "optimizer.inner": inner,
        "net.optimizer": nested,
        "other.of[0]": second,
        "net.layers[0].by_layer[0]": deep,
    }


def test_an_optimizer_whose_variables_another_one_lists_is_not_saved_twice():
    compiled = Optimizer(inner_optimizer=Optimizer())
    compiled.variables += compiled.inner_optimizer.variables
    assert user_optimizers.user_optimizers(SimpleNamespace(optimizer=compiled)) == {}


def test_state_is_restored_at_once_or_when_the_variables_exist():
    built, waiting = Optimizer(), Optimizer()
    built.build([(2,)])
    state = [np.array(3.0), np.array([1.0, 2.0])]
    user_optimizers.restore({"built": built, "waiting": waiting}, {"built": state, "waiting": state}, assign, unknown)
    np.testing.assert_array_equal(built.variables[1], state[1])
    assert len(waiting.variables) == 1
    waiting.build([(2,)])
    np.testing.assert_array_equal(waiting.variables[1], state[1])
    assert "build" not in vars(waiting)


def test_the_state_of_other_optimizers_is_rejected():
    with pytest.raises(CheckpointError, match="the optimizers a, but this model has none"):
        user_optimizers.restore({}, {"a": []}, assign, unknown)
    waiting = Optimizer()
    user_optimizers.restore({"a": waiting}, {"a": [np.zeros(()), np.zeros(3)]}, assign, unknown)
    with pytest.raises(CheckpointError, match="other shapes"):
        waiting.build([(2,)])


def test_an_optimizer_is_built_for_the_variables_for_which_it_was_built():
    optimizer = Optimizer()
    state = [np.array(3.0), np.array([1.0, 2.0])]
    user_optimizers.restore({"a": optimizer}, {"a": state}, assign, lambda name, optimizer: optimizer.build([(2,)]))
    np.testing.assert_array_equal(optimizer.variables[1], state[1])
    assert "build" not in vars(optimizer)


def test_an_older_checkpoint_may_lack_optimizers():
    optimizers = {"net.optimizer": Optimizer(), "second": Optimizer()}
    saved = {"second": [np.array(3.0)]}
    with pytest.raises(CheckpointError, match=r"the optimizers second, but this model has net\.optimizer, second"):
        user_optimizers.restore(optimizers, saved, assign, unknown)
    user_optimizers.restore(optimizers, saved, assign, unknown, is_old=True)
    assert [float(each.variables[0]) for each in optimizers.values()] == [0, 3]
