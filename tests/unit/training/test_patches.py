"""Which patches are applied, with stubs for TensorFlow and for Keras with and without the faults."""

import contextlib
import importlib
import logging
import sys
import types

import pytest

TRAINING = "spark_tensorflow_distributor.training"


class DistributedValues:
    def __init__(self, *values):
        self.values = values


class Strategy:
    """The part of MultiWorkerMirroredStrategy that a trainer uses: this worker's value is the first one."""

    num_replicas_in_sync = 2
    scope = contextlib.nullcontext
    extended = types.SimpleNamespace(_in_multi_worker_mode=lambda: True, worker_devices=("here",))

    def reduce(self, operation, value, axis):
        if axis is not None or not isinstance(value, DistributedValues):
            raise TypeError("cannot be reduced")
        return sum(value.values) / (len(value.values) if operation == "MEAN" else 1)

    def experimental_local_results(self, value):
        return value.values if isinstance(value, DistributedValues) else (value,)


def stub_tensorflow():
    def map_structure(function, value):
        return tuple(map(function, value)) if isinstance(value, tuple) else function(value)

    return types.SimpleNamespace(
        distribute=types.SimpleNamespace(DistributedValues=DistributedValues, MultiWorkerMirroredStrategy=Strategy),
        nest=types.SimpleNamespace(
            map_structure=map_structure,
            flatten=lambda values: list(values.values()),
            pack_sequence_as=lambda values, leaves: dict(zip(values, leaves, strict=True)),
        ),
        Graph=lambda: types.SimpleNamespace(as_default=contextlib.nullcontext),
        compat=types.SimpleNamespace(v1=types.SimpleNamespace(placeholder=lambda *_: DistributedValues(1.0))),
        float32="float32",
        Tensor=type("Tensor", (), {}),
    )


def stub_trainer(width, faulty):
    """Return a stand-in for Keras' trainer module, whose epochs yield tuples of ``width``."""

    class TensorFlowTrainer:
        def __init__(self, strategy):
            self._distribute_strategy = self.distribute_strategy = strategy
            self.built = []

        def _symbolic_build(self, data_batch):
            self.built.append(data_batch)

        def _maybe_symbolic_build(self, iterator=None, data_batch=None):
            for step in iterator:
                if width == 3:
                    _, _, batches = step
                else:
                    _, batches = step
                data_batch = next(batches)
                if isinstance(data_batch[0], DistributedValues):
                    reduce = self.distribute_strategy.reduce if faulty else self.distribute_strategy.local
                    data_batch = reduce("MEAN", data_batch, axis=None)
                break
            self._symbolic_build(data_batch=data_batch)

    def reduce_per_replica(values, strategy, reduction):
        axis = 0 if faulty else None
        if isinstance(values, dict):
            return {name: strategy.reduce("MEAN", value, axis=axis) for name, value in values.items()}
        return strategy.reduce("MEAN", values, axis=axis)

    return types.SimpleNamespace(TensorFlowTrainer=TensorFlowTrainer, reduce_per_replica=reduce_per_replica)


@pytest.fixture
def patches(install_keras, monkeypatch):
    """The patches that can be tested without Keras, imported with the stand-in for TensorFlow."""
    package = importlib.import_module(TRAINING)

    def forget():
        for name in [
            name for name in sys.modules if name.startswith((f"{TRAINING}.patches", f"{TRAINING}.collectives"))
        ]:
            del sys.modules[name]
        for name in ("patches", "collectives"):
            vars(package).pop(name, None)

    for name in [name for name in sys.modules if name.partition(".")[0] in ("keras", "tf_keras")]:
        monkeypatch.delitem(sys.modules, name)  # an earlier test of this process may have imported the real ones
    monkeypatch.setitem(sys.modules, "tensorflow", stub_tensorflow())
    forget()
    patches = importlib.import_module(f"{TRAINING}.patches")
    kept = ("symbolic_build", "reduce_per_replica")
    monkeypatch.setattr(patches, "PATCHES", {name: patches.PATCHES[name] for name in kept})
    yield patches
    forget()


@pytest.mark.parametrize("width", [2, 3])
def test_faults_are_patched_once(patches, install_keras, width):
    trainer = stub_trainer(width, faulty=True)
    install_keras(trainer)
    assert patches.apply_patches() == ["symbolic_build", "reduce_per_replica"]
    assert patches.apply_patches() == []

    spec = types.SimpleNamespace(shape=(None, 4), dtype="float32")
    epoch = types.SimpleNamespace(_distributed_dataset=types.SimpleNamespace(element_spec=(spec, "nothing")))
    model = trainer.TensorFlowTrainer(Strategy())
    model._maybe_symbolic_build(iterator=epoch)
    assert model.built == [(spec, None)]  # from shapes, without consuming a batch

    logs = {"loss": DistributedValues(1.0, 3.0), "constant": 7}
    assert trainer.reduce_per_replica(logs, Strategy(), "auto") == {"loss": 2.0, "constant": 7}
    assert trainer.reduce_per_replica(logs, Strategy(), "sum") == {"loss": 4.0, "constant": 7}


def test_a_single_worker_gets_the_behaviour_of_keras(patches, install_keras):
    trainer = stub_trainer(3, faulty=True)
    install_keras(trainer)
    patches.apply_patches()

    class SingleWorker(Strategy):
        num_replicas_in_sync = 1

    with pytest.raises(TypeError, match="cannot be reduced"):
        trainer.reduce_per_replica({"loss": DistributedValues(1.0)}, SingleWorker(), "auto")


def test_a_release_without_the_faults_is_left_unchanged(patches, install_keras, monkeypatch):
    trainer = stub_trainer(3, faulty=False)
    before = dict(vars(trainer)), trainer.TensorFlowTrainer._maybe_symbolic_build
    probe = patches.model_building.probe_strategy

    def with_local():
        strategy = probe()
        strategy.local = lambda _, batch, axis: tuple(value.values[0] for value in batch)
        return strategy

    monkeypatch.setattr(patches.model_building, "probe_strategy", with_local)
    install_keras(trainer)
    assert patches.apply_patches() == []
    assert (dict(vars(trainer)), trainer.TensorFlowTrainer._maybe_symbolic_build) == before


def test_unrecognised_internals_are_left_unchanged_with_a_warning(patches, install_keras, caplog):
    trainer = stub_trainer(4, faulty=True)
    trainer.TensorFlowTrainer._maybe_symbolic_build = unknown = lambda self, batches: None
    trainer.reduce_per_replica = lambda values, mesh: values
    install_keras(trainer, version="4.1.0")
    with caplog.at_level(logging.WARNING):
        assert patches.apply_patches() == []
    assert trainer.TensorFlowTrainer._maybe_symbolic_build is unknown
    assert [("symbolic_build" in text, "reduce_per_replica" in text) for text in caplog.messages] == [
        (True, False),
        (False, True),
    ]
    assert all("keras 4.1.0" in text and "TF_USE_LEGACY_KERAS" in text for text in caplog.messages)


def test_missing_internals_are_a_warning(patches, install_keras, caplog):
    install_keras()
    assert patches.apply_patches() == []
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(("version", "backend"), [("2.15.0", "tensorflow"), ("3.99.0", "jax"), ("3.99.0", "torch")])
def test_another_keras_is_not_patched(patches, install_keras, caplog, version, backend):
    install_keras(version=version, backend=backend)
    assert patches.apply_patches() == []
    assert caplog.messages == []


def test_keras_3_is_not_patched_if_tf_keras_is_selected(patches, install_keras, monkeypatch, caplog):
    install_keras()
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    assert patches.apply_patches() == []
    assert caplog.messages == []


def test_a_process_without_keras_is_left_alone(patches, caplog):
    assert patches.apply_patches() == []
    assert "keras" not in sys.modules
    assert caplog.messages == []
