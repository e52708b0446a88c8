"""What is decided about Keras without Keras: small stand-ins with the faults, or without them."""

import contextlib
import importlib.util
import inspect
import logging
import sys
import types

import pytest

from spark_tensorflow_distributor.training import keras_api as own
from spark_tensorflow_distributor.training import patches, progress
from spark_tensorflow_distributor.training.patches import model_building


class DistributedValues:
    def __init__(self, *values):
        self.values = values


class Strategy:
    """As much of MultiWorkerMirroredStrategy as a trainer touches: this worker's value is the first of all."""

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
        variable_creator_scope=lambda creator: contextlib.nullcontext(
            creator(lambda **_: None, synchronization="on read", aggregation=None)
        ),
        VariableSynchronization=types.SimpleNamespace(ON_READ="on read"),
        VariableAggregation=types.SimpleNamespace(SUM="sum"),
    )


def stub_trainer(width, walk, faulty):
    """Keras' trainer module, with an epoch that is walked over tuples of ``width``."""

    class TensorFlowTrainer:
        def __init__(self, strategy):
            self._distribute_strategy = self.distribute_strategy = strategy
            self.built = []

        def _symbolic_build(self, data_batch):
            self.built.append(data_batch)

        def _maybe_symbolic_build(self, iterator=None, data_batch=None):
            for step in iterator.enumerate_epoch() if walk == "enumerate" else iterator:
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


def stub_keras(trainer=None, version="3.99.0", backend="tensorflow"):
    keras = types.ModuleType("keras")
    keras.__version__ = version
    keras.backend = types.SimpleNamespace(backend=lambda: backend)
    keras.metrics = types.SimpleNamespace(Sum=object)
    if trainer is not None:
        keras.src = types.SimpleNamespace(
            backend=types.SimpleNamespace(tensorflow=types.SimpleNamespace(trainer=trainer))
        )
    return keras


@pytest.fixture
def install(monkeypatch):
    """Puts a stand-in where ``import keras`` finds it; nothing else is installed."""
    monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow", stub_tensorflow())
    for name in ("keras", "tf_keras"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(progress._Receiver, "send", None)
    # The others are of no use without Keras; tests/training has them.
    kept = ("symbolic_build", "reduce_per_replica", "metric_variables", "loss_scaling")
    monkeypatch.setattr(patches, "PATCHES", {name: patches.PATCHES[name] for name in kept})

    def install(package):
        monkeypatch.setitem(sys.modules, package.__name__, package)
        return package

    return install


# ---- apply_patches


@pytest.mark.parametrize("walk", ["iterate", "enumerate"])
@pytest.mark.parametrize("width", [2, 3])
def test_faults_are_mended_once(install, width, walk):
    trainer = stub_trainer(width, walk, faulty=True)
    install(stub_keras(trainer))
    assert patches.apply_patches() == ["symbolic_build", "reduce_per_replica"]
    assert patches.apply_patches() == []

    spec = types.SimpleNamespace(shape=(None, 4), dtype="float32")
    epoch = types.SimpleNamespace(_distributed_dataset=types.SimpleNamespace(element_spec=(spec, "nothing")))
    model = trainer.TensorFlowTrainer(Strategy())
    model._maybe_symbolic_build(iterator=epoch)
    assert model.built == [(spec, None)]  # of shapes, and no batch is lost for them

    logs = {"loss": DistributedValues(1.0, 3.0), "constant": 7}
    assert trainer.reduce_per_replica(logs, Strategy(), "auto") == {"loss": 2.0, "constant": 7}
    assert trainer.reduce_per_replica(logs, Strategy(), "sum") == {"loss": 4.0, "constant": 7}


def test_one_worker_keeps_what_keras_does(install):
    trainer = stub_trainer(3, "iterate", faulty=True)
    install(stub_keras(trainer))
    patches.apply_patches()

    class One(Strategy):
        num_replicas_in_sync = 1

    with pytest.raises(TypeError, match="cannot be reduced"):
        trainer.reduce_per_replica({"loss": DistributedValues(1.0)}, One(), "auto")


def test_what_works_stays_as_it_is(install, monkeypatch):
    trainer = stub_trainer(3, "iterate", faulty=False)
    before = dict(vars(trainer)), trainer.TensorFlowTrainer._maybe_symbolic_build
    probe = model_building.probe_strategy

    def with_local(tf):
        strategy = probe(tf)
        strategy.local = lambda _, batch, axis: tuple(value.values[0] for value in batch)
        return strategy

    monkeypatch.setattr(model_building, "probe_strategy", with_local)
    install(stub_keras(trainer))
    assert patches.apply_patches() == []
    assert (dict(vars(trainer)), trainer.TensorFlowTrainer._maybe_symbolic_build) == before


def test_an_unknown_kind_is_left_alone_with_a_warning(install, caplog):
    trainer = stub_trainer(4, "iterate", faulty=True)  # tuples of four, say
    trainer.TensorFlowTrainer._maybe_symbolic_build = unknown = lambda self, batches: None
    trainer.reduce_per_replica = lambda values, mesh: values
    install(stub_keras(trainer, version="4.1.0"))
    with caplog.at_level(logging.WARNING):
        assert patches.apply_patches() == []
    assert trainer.TensorFlowTrainer._maybe_symbolic_build is unknown
    assert [("symbolic_build" in text, "reduce_per_replica" in text) for text in caplog.messages] == [
        (True, False),
        (False, True),
    ]
    assert all("keras 4.1.0" in text and "TF_USE_LEGACY_KERAS" in text for text in caplog.messages)


def test_insides_that_are_gone_are_a_warning_too(install, caplog):
    install(stub_keras(trainer=None))
    assert patches.apply_patches() == []
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(("version", "backend"), [("2.15.0", "tensorflow"), ("3.99.0", "jax"), ("3.99.0", "torch")])
def test_other_keras_is_not_looked_into(install, caplog, version, backend):
    install(stub_keras(version=version, backend=backend))
    assert patches.apply_patches() == []
    assert caplog.messages == []


def test_legacy_keras_is_not_looked_into(install, monkeypatch, caplog):
    install(stub_keras())
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    assert patches.apply_patches() == []
    assert caplog.messages == []


def test_without_keras_there_is_nothing_to_do(install, caplog):
    assert patches.apply_patches() == []
    own.quiet_auto_verbose(is_chief=True)
    progress.report_fit_progress(print)
    assert "keras" not in sys.modules
    assert caplog.messages == []


# ---- fit, evaluate, predict


class Callback:
    params = None

    def set_params(self, params):
        self.params = params


class CallbackList:
    def __init__(self, callbacks):
        self.callbacks = callbacks


class Trainer:
    def fit(self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, validation_split=0.0):
        """Two steps an epoch."""
        self.verbose, self.callbacks = verbose, callbacks
        if not isinstance(callbacks, CallbackList):
            callbacks = CallbackList(list(callbacks or []))
            for callback in callbacks.callbacks:
                callback.set_params({"epochs": epochs, "steps": 2})

        def call(hook, *arguments):
            for callback in callbacks.callbacks:
                getattr(callback, hook, lambda *_: None)(*arguments)

        call("on_train_begin", {})
        for epoch in range(epochs):
            call("on_epoch_begin", epoch, {})
            for step in range(2):
                call("on_train_batch_end", step, {"loss": 0.5, "scores": [1, 2]})
            call("on_epoch_end", epoch, {"loss": 0.25, "scores": [1, 2], "note": "text"})
        return "history"

    def evaluate(self, x=None, verbose="auto", **kwargs):
        return verbose, kwargs

    def predict(self, x, batch_size=None, verbose="auto"):
        return verbose


@pytest.fixture
def model(install):
    """A model of a class that is made anew, so that nothing done to it is left for the next test."""
    trainer = type("Trainer", (), {k: v for k, v in vars(Trainer).items() if k in ("fit", "evaluate", "predict")})
    package = stub_keras()
    package.Model = type("Model", (trainer,), {})
    package.callbacks = types.SimpleNamespace(Callback=Callback, CallbackList=CallbackList)
    install(package)
    return type("Own", (package.Model,), {})()


@pytest.mark.parametrize(("is_chief", "meant"), [(True, 2), (False, 0)])
def test_auto_verbose_gets_a_meaning_and_nothing_else_does(model, is_chief, meant):
    own.quiet_auto_verbose(is_chief)
    assert model.fit() == "history"
    assert model.verbose == meant
    model.fit(None, None, 8, 1, "auto")
    assert model.verbose == meant
    model.fit(None, None, 8, 1, 1)
    assert model.verbose == 1
    assert model.evaluate(steps=3) == (meant, {"steps": 3})
    assert model.evaluate(verbose=0) == (0, {})
    assert model.predict("x") == meant
    assert model.predict("x", verbose=1) == 1


def test_wrong_arguments_are_keras_to_name(model):
    own.quiet_auto_verbose(is_chief=True)
    progress.report_fit_progress(print)
    with pytest.raises(TypeError, match=r"fit\(\) got an unexpected keyword argument 'epoch'"):
        model.fit(epoch=3)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        model.predict()


def test_progress_of_a_fit(model, monkeypatch):
    told = []
    progress.report_fit_progress(told.append)
    clock = iter([10.0, 10.1, 10.2, 10.3])  # one look at it for each step
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    own = [Callback()]
    assert model.fit("x", "y", epochs=2, callbacks=own) == "history"
    assert len(own) == 1
    assert told == [
        {"event": "fit_begin", "epochs": 2, "steps": 2},
        {"event": "step", "epoch": 0, "step": 1, "loss": 0.5, "samples": 32},
        {"event": "epoch_end", "epoch": 0, "step": 2, "logs": {"loss": 0.25}},
        {"event": "step", "epoch": 1, "step": 1, "loss": 0.5, "samples": 96},
        {"event": "epoch_end", "epoch": 1, "step": 2, "logs": {"loss": 0.25}},
        {"event": "fit_end"},
    ]


def test_a_later_receiver_takes_over(model):
    first, second = [], []
    progress.report_fit_progress(first.append)
    progress.report_fit_progress(second.append)
    model.fit()
    assert first == []
    assert [message["event"] for message in second] == ["fit_begin", "step", "epoch_end", "fit_end"]


def test_fit_looks_as_before(model):
    signature, text = inspect.signature(model.fit), model.fit.__doc__
    own.quiet_auto_verbose(is_chief=True)
    progress.report_fit_progress(print)
    assert (inspect.signature(model.fit), model.fit.__doc__) == (signature, text)


def test_a_callback_list_is_given_back_as_it_was(model):
    told = []
    progress.report_fit_progress(told.append)
    callbacks = CallbackList([Callback()])
    parts = list(callbacks.callbacks)
    model.fit(epochs=1, callbacks=callbacks)
    assert model.callbacks is callbacks
    assert callbacks.callbacks == parts
    assert told[0] == {"event": "fit_begin", "epochs": 1, "steps": None}
    assert told[-1] == {"event": "fit_end"}


@pytest.mark.parametrize("callbacks", [None, [], (), Callback(), (Callback(),)])
def test_callbacks_in_every_form(model, callbacks):
    told = []
    progress.report_fit_progress(told.append)
    model.fit(callbacks=callbacks)
    assert told[-1] == {"event": "fit_end"}


def test_a_failing_receiver_ends_reporting_only(model):
    told = []

    def send(message):
        told.append(message)
        raise BrokenPipeError

    progress.report_fit_progress(send)
    assert model.fit(epochs=3) == "history"
    assert model.fit() == "history"
    assert len(told) == 1


def test_a_fit_that_raises_has_ended(model):
    told = []
    progress.report_fit_progress(told.append)

    class Stop(Callback):
        def on_epoch_end(self, *_):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        model.fit(callbacks=Stop())
    assert told[-1] == {"event": "fit_end"}


def dataset(kind, **attributes):
    """A tf.data step, whose class tells what it does."""
    source = attributes.pop("source", None)
    return type(kind, (), {"_inputs": lambda self: [source], **attributes})()


@pytest.mark.parametrize(
    ("arguments", "batch"),
    [
        ({"x": [[1.0]], "y": [1]}, 32),
        ({"x": [[1.0]], "y": [1], "batch_size": 8}, 8),
        ({"x": [[1.0]], "batch_size": 8}, 8),
        ({"x": dataset("_BatchDataset", _batch_size=64)}, 64),
        ({"x": dataset("_PrefetchDataset", source=dataset("_ParallelBatchDataset", _batch_size=64))}, 64),
        ({"x": dataset("CacheDataset", source=dataset("_MapDataset", source=dataset("_B", _batch_size=9)))}, 9),
        ({"x": dataset("_MapDataset", global_batch_size=128, source=dataset("_BatchDataset", _batch_size=64))}, 128),
        ({"x": dataset("_UnbatchDataset", source=dataset("_BatchDataset", _batch_size=64))}, None),
        ({"x": dataset("_FlatMapDataset", source=dataset("_BatchDataset", _batch_size=64))}, None),
        ({"x": iter([])}, None),
        ({}, None),
    ],
)
def test_the_batch_size_is_told_where_it_is_known(arguments, batch):
    assert progress._global_batch(**arguments) == batch
