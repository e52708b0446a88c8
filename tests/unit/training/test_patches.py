"""How patches are applied, with stand-ins for TensorFlow and Keras."""

import contextlib
import importlib
import logging
import sys
import types

import pytest


class DistributedValues:
    def __init__(self, *values):
        self.values = values


def stub_trainer():
    """Return a stand-in for Keras' trainer module, which reduces batches to build a model, and logs by their axis 0."""

    class TensorFlowTrainer:
        def __init__(self, strategy):
            self._distribute_strategy = self.distribute_strategy = strategy
            self.built = []

        def _symbolic_build(self, iterator=None, data_batch=None):
            self.built.append(data_batch)

        def _maybe_symbolic_build(self, iterator=None, data_batch=None):
            self._symbolic_build(data_batch=data_batch or next(iterator))

    def reduce_per_replica(values, strategy, reduction):
        return {name: strategy.reduce("MEAN", value, axis=0) for name, value in values.items()}

    return types.SimpleNamespace(TensorFlowTrainer=TensorFlowTrainer, reduce_per_replica=reduce_per_replica)


@pytest.fixture
def patches(stub_tensorflow, install_keras):
    """The patches, imported with the stand-in for TensorFlow."""

    def map_structure(function, value):
        if isinstance(value, dict):
            return {name: map_structure(function, each) for name, each in value.items()}
        return tuple(map_structure(function, each) for each in value) if isinstance(value, tuple) else function(value)

    stub_tensorflow.nest = types.SimpleNamespace(map_structure=map_structure)
    return importlib.import_module("spark_tensorflow_distributor.training.patches")


@pytest.fixture
def mirrored(patches, monkeypatch):
    """The one patch that a trainer module suffices for."""
    monkeypatch.setattr(patches, "PATCHES", {"mirrored": patches.PATCHES["mirrored"]})
    return patches


@pytest.fixture
def strategy(stub_tensorflow):
    """A strategy of TensorFlow's own over two workers: this worker's value is the first one."""

    class Strategy(stub_tensorflow.distribute.MultiWorkerMirroredStrategy):
        num_replicas_in_sync = 2

        def __init__(self):
            self.extended = types.SimpleNamespace(worker_devices=("here",))

        def reduce(self, operation, value, axis):
            if axis is not None:
                raise TypeError("cannot be reduced")
            values = value.values if isinstance(value, DistributedValues) else (value,)
            return sum(values) / (len(values) if operation == "MEAN" else 1)

    return Strategy()


def test_patches_are_applied_once_in_their_order(patches, install_keras, monkeypatch):
    keras, calls = install_keras(), []
    names = list(patches.PATCHES)
    table = {name: lambda package, name=name: calls.append((name, package)) for name in names}
    monkeypatch.setattr(patches, "PATCHES", table)
    left_out = names[1]
    assert patches.apply_patches(without=[left_out]) == [name for name in names if name != left_out]
    assert calls == [(name, keras) for name in names if name != left_out]
    assert patches.apply_patches() == []
    assert len(calls) == len(names) - 1


def test_tf_keras_has_patches_of_its_own(patches, install_keras, monkeypatch):
    install_keras()
    tf_keras = types.ModuleType("tf_keras")
    monkeypatch.setitem(sys.modules, "tf_keras", tf_keras)
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    calls = []
    monkeypatch.setattr(patches, "TF_KERAS_PATCHES", {"parts": calls.append})
    assert patches.apply_patches() == ["parts"]
    assert calls == [tf_keras]


def test_mirrored_builds_from_shapes_and_averages_over_workers(mirrored, install_keras, strategy):
    trainer = stub_trainer()
    install_keras(trainer)
    assert mirrored.apply_patches() == ["mirrored"]

    spec = types.SimpleNamespace(shape=(None, 4), dtype="float32")
    of_replicas = types.SimpleNamespace(_value_specs=(spec, spec))
    epoch = types.SimpleNamespace(_distributed_dataset=types.SimpleNamespace(element_spec=(of_replicas, "nothing")))
    model = trainer.TensorFlowTrainer(strategy)
    model._maybe_symbolic_build(iterator=epoch)
    assert model.built == [(spec, None)]  # without consuming a batch, which this iterator could not yield

    logs = {"loss": DistributedValues(1.0, 3.0), "constant": 7}
    assert trainer.reduce_per_replica(logs, strategy, "auto") == {"loss": 2.0, "constant": 7}
    assert trainer.reduce_per_replica(logs, strategy, "sum") == {"loss": 4.0, "constant": 7}


def test_mirrored_leaves_a_single_worker_and_other_strategies_to_keras(mirrored, install_keras, strategy):
    trainer = stub_trainer()
    install_keras(trainer)
    mirrored.apply_patches()
    single = type(strategy)()
    single.num_replicas_in_sync = 1
    other = types.SimpleNamespace(num_replicas_in_sync=2, reduce=strategy.reduce, scope=contextlib.nullcontext)
    for each in (single, other):
        with pytest.raises(TypeError, match="cannot be reduced"):
            trainer.reduce_per_replica({"loss": DistributedValues(1.0)}, each, "auto")
        model = trainer.TensorFlowTrainer(each)
        model._maybe_symbolic_build(iterator=iter(["a batch"]))
        assert model.built == ["a batch"]
    with pytest.raises(TypeError, match="cannot be reduced"):  # what is concatenated is not averaged
        trainer.reduce_per_replica({"loss": DistributedValues(1.0)}, strategy, "concat")


@pytest.mark.parametrize("name", ["_maybe_symbolic_build", "reduce_per_replica"])
def test_unrecognised_internals_are_left_unchanged_with_a_warning(mirrored, install_keras, caplog, name):
    trainer = stub_trainer()
    delattr(trainer.TensorFlowTrainer if name.startswith("_") else trainer, name)
    before = [dict(vars(each)) for each in (trainer, trainer.TensorFlowTrainer)]
    install_keras(trainer, version="4.1.0")
    with caplog.at_level(logging.WARNING):
        assert mirrored.apply_patches() == []
    assert [dict(vars(each)) for each in (trainer, trainer.TensorFlowTrainer)] == before
    (text,) = caplog.messages
    assert all(part in text for part in ("mirrored", name, "keras 4.1.0", "TF_USE_LEGACY_KERAS"))


def test_missing_internals_are_a_warning_for_each_patch(patches, install_keras, caplog):
    install_keras()
    assert patches.apply_patches() == []
    assert len(caplog.messages) == len(patches.PATCHES)
    for name, text in zip(patches.PATCHES, caplog.messages, strict=True):
        assert f"unrecognised {name} (" in text


@pytest.mark.parametrize(("version", "backend"), [("2.15.0", "tensorflow"), ("3.99.0", "jax"), ("3.99.0", "torch")])
def test_another_keras_is_not_patched(patches, install_keras, caplog, version, backend):
    install_keras(version=version, backend=backend)
    assert patches.apply_patches() == []
    assert caplog.messages == []


def test_keras_3_is_not_patched_if_tf_keras_is_selected(patches, install_keras, monkeypatch, caplog):
    keras = install_keras()
    before = dict(vars(keras))
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    assert patches.apply_patches() == []  # it is not installed
    assert vars(keras) == before
    assert caplog.messages == []


def test_a_process_without_keras_is_left_alone(patches, caplog):
    assert patches.apply_patches() == []
    assert "keras" not in sys.modules
    assert caplog.messages == []
