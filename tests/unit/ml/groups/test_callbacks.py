"""Callbacks with methods that a group's training does not call are refused."""

import pytest

from spark_tensorflow_distributor import ConfigurationError
from spark_tensorflow_distributor.ml.groups.callbacks import check_callbacks


class Callback:
    def on_batch_end(self, batch, logs=None): ...

    on_batch_begin = on_train_batch_begin = on_train_batch_end = on_batch_end
    on_test_begin = on_test_end = on_test_batch_begin = on_test_batch_end = on_batch_end


class ModelCheckpoint(Callback):
    __module__ = "keras.src.callbacks.model_checkpoint"

    def __init__(self, save_freq="epoch"):
        self.save_freq = save_freq

    def on_train_batch_end(self, batch, logs=None): ...


class OfUser(ModelCheckpoint):
    def on_epoch_end(self, epoch, logs=None): ...


class TerminateOnNaN(Callback):
    __module__ = "keras.src.callbacks.terminate_on_nan"

    def on_batch_end(self, batch, logs=None): ...


class Evaluates(Callback):
    def on_test_begin(self, logs=None): ...


def with_function():
    callback = Callback()
    callback.on_train_batch_end = lambda batch, logs: None
    return callback


@pytest.mark.parametrize(
    ("callback", "has_validation"),
    [(Callback(), True), (ModelCheckpoint(), True), (OfUser(), True), (Evaluates(), False)],
)
def test_allowed(callback, has_validation):
    assert check_callbacks([callback], Callback, has_validation=has_validation) is None


@pytest.mark.parametrize(
    ("callback", "name"),
    [
        (ModelCheckpoint(100), "ModelCheckpoint has on_train_batch_end"),
        (OfUser(100), "OfUser has on_train_batch_end"),
        (TerminateOnNaN(), "TerminateOnNaN has on_batch_end"),
        (with_function(), "Callback has on_train_batch_end"),
        (Evaluates(), "Evaluates has on_test_begin"),
    ],
)
def test_refused(callback, name):
    with pytest.raises(ConfigurationError, match=name):
        check_callbacks([callback], Callback, has_validation=True)
