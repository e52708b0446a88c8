"""Stubs for Keras and TensorFlow; the code under test sees no other packages."""

import contextlib
import importlib.util
import sys
import types

import pytest

import spark_tensorflow_distributor
from helpers import STUBS
from spark_tensorflow_distributor.training import progress

TRAINER = "keras.src.backend.tensorflow.trainer"


@pytest.fixture
def install_keras(monkeypatch):
    """Return a function that puts a stand-in where ``import keras`` finds it, with the given trainer module."""
    monkeypatch.delenv("TF_USE_LEGACY_KERAS", raising=False)
    for name in ("keras", "tf_keras", TRAINER):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(progress._Receiver, "send", None)

    def install_keras(trainer=None, *, version="3.99.0", backend="tensorflow"):
        keras = types.ModuleType("keras")
        keras.__version__ = version
        keras.backend = types.SimpleNamespace(backend=lambda: backend)
        monkeypatch.setitem(sys.modules, "keras", keras)
        if trainer is not None:
            monkeypatch.setitem(sys.modules, TRAINER, trainer)
        return keras

    return install_keras


class Callback:
    params = None

    def set_params(self, params):
        self.params = params


class CallbackList:
    """Takes what that of Keras takes: None, one callback, or a sequence."""

    def __init__(self, callbacks):
        is_one = callbacks and not isinstance(callbacks, list | tuple)
        self.callbacks = [callbacks] if is_one else list(callbacks or [])


class Trainer:
    def fit(self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, validation_split=0.0):
        """Runs two steps per epoch."""
        self.verbose, self.callbacks = verbose, callbacks
        if not isinstance(callbacks, CallbackList):
            callbacks = CallbackList(callbacks)
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

    def train_on_batch(self, x, y=None):
        return "logs"

    def test_on_batch(self, x, y=None):
        return "logs"

    def predict_on_batch(self, x):
        return x


@pytest.fixture
def keras(install_keras):
    """A Keras whose model class is created anew, so that changes to it do not affect other tests."""
    keras = install_keras()
    trainer = type("Trainer", (), {k: v for k, v in vars(Trainer).items() if not k.startswith("__")})
    keras.Model = type("Model", (trainer,), {})
    keras.callbacks = types.SimpleNamespace(Callback=Callback, CallbackList=CallbackList)
    return keras


@pytest.fixture
def model(keras):
    return type("UserModel", (keras.Model,), {})()


@pytest.fixture
def stub_tensorflow():
    """A stand-in for TensorFlow, with which modules of ``training`` can be imported until the test ends.

    Request it before ``monkeypatch``, which must restore its packages first.
    """
    package = spark_tensorflow_distributor.__name__
    training = f"{package}.training"

    def take_away():
        """Remove the packages and return them: an earlier test of this process may have imported the real ones."""
        roots = ("tensorflow", "keras", "tf_keras", training)
        names = [name for name in sys.modules if name in roots or name.startswith(tuple(f"{root}." for root in roots))]
        return {name: sys.modules.pop(name) for name in names}

    before = take_away()
    with pytest.MonkeyPatch.context() as context:
        context.syspath_prepend(STUBS)
        tensorflow = importlib.import_module("tensorflow")
    tensorflow.Variable = type("Variable", (), {})
    tensorflow.executing_eagerly, tensorflow.init_scope = lambda: True, contextlib.nullcontext
    yield tensorflow
    take_away()
    sys.modules.update(before)
    spark_tensorflow_distributor.training = before[training]
