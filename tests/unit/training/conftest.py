"""Stand-ins for Keras; nothing else is installed as far as the code under test can see."""

import importlib.util
import sys
import types

import pytest

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
    def __init__(self, callbacks):
        self.callbacks = callbacks


class Trainer:
    def fit(self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, validation_split=0.0):
        """Runs two steps per epoch."""
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
def keras(install_keras):
    """A Keras whose model class is created anew, so that changes to it do not affect other tests."""
    keras = install_keras()
    trainer = type("Trainer", (), {k: v for k, v in vars(Trainer).items() if k in ("fit", "evaluate", "predict")})
    keras.Model = type("Model", (trainer,), {})
    keras.callbacks = types.SimpleNamespace(Callback=Callback, CallbackList=CallbackList)
    return keras


@pytest.fixture
def model(keras):
    return type("UserModel", (keras.Model,), {})()
