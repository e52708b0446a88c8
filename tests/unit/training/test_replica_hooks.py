"""Who reads the logs of single steps, with stand-ins for TensorFlow and Keras."""

import importlib
import types

import pytest


class Callback:
    def on_batch_end(self, batch, logs=None):
        pass

    def on_train_batch_end(self, batch, logs=None):
        self.on_batch_end(batch, logs)

    def on_test_batch_end(self, batch, logs=None):
        pass

    def on_epoch_end(self, epoch, logs=None):
        pass


class _Writer(Callback):
    def __init__(self, **attributes):
        vars(self).update(attributes)

    def on_train_batch_end(self, batch, logs=None):
        pass


KERAS = types.SimpleNamespace(
    callbacks=types.SimpleNamespace(
        Callback=Callback,
        BackupAndRestore=type("BackupAndRestore", (_Writer,), {}),
        ModelCheckpoint=type("ModelCheckpoint", (_Writer,), {}),
        TensorBoard=type("TensorBoard", (_Writer,), {}),
    )
)


class EpochOnly(Callback):
    def on_epoch_end(self, epoch, logs=None):
        pass


def overriding(name, **attributes):
    return type("Own", (Callback,), {name: lambda self, batch, logs=None: None, **attributes})()


def by_attribute(name):
    """As LambdaCallback and others do."""
    callback = Callback()
    setattr(callback, name, lambda batch, logs=None: None)
    return callback


@pytest.mark.parametrize(
    ("callback", "reads"),
    [
        (Callback(), False),
        (EpochOnly(), False),
        (overriding("on_batch_end"), True),
        (overriding("on_train_batch_end"), True),
        (overriding("on_test_batch_end"), True),
        (overriding("on_train_batch_end", ignores_step_logs=True), False),
        (by_attribute("on_train_batch_end"), True),
        (by_attribute("on_epoch_end"), False),
        (KERAS.callbacks.BackupAndRestore(), False),
        (KERAS.callbacks.ModelCheckpoint(save_freq="epoch"), False),
        (KERAS.callbacks.ModelCheckpoint(save_freq=3), True),
        (KERAS.callbacks.TensorBoard(update_freq="epoch"), False),
        (KERAS.callbacks.TensorBoard(update_freq="batch"), True),
    ],
)
def test_the_callbacks_that_read_the_logs_of_steps(stub_tensorflow, callback, reads):
    module = importlib.import_module("spark_tensorflow_distributor.training.replica_hooks")
    assert module._reads_steps(KERAS, callback) is reads


@pytest.mark.parametrize(
    ("arguments", "readers", "are_read"),
    [
        ({"verbose": 2}, [False, False], False),
        ({"verbose": 0}, [False, True], True),  # on another worker
        ({"verbose": 1}, [False, False], True),
        ({}, [False, False], True),  # "auto" would print them
        ({"verbose": 0, "callbacks": overriding("on_train_batch_end")}, [False, False], True),
        ({"verbose": 0, "callbacks": [Callback(), EpochOnly()]}, [False, False], False),
    ],
)
def test_logs_are_read_if_anybody_on_any_worker_does(stub_tensorflow, arguments, readers, are_read):
    module = importlib.import_module("spark_tensorflow_distributor.training.replica_hooks")
    sent = []

    def gather_bytes(own):
        sent.append(own)
        return [own if each is False else b"1 0" for each in readers]

    strategy = types.SimpleNamespace(collectives=types.SimpleNamespace(gather_bytes=gather_bytes))
    call = types.SimpleNamespace(arguments=arguments, package=KERAS)
    assert module._agreed(call, strategy)[0] is are_read
    assert len(sent) == 1  # every worker takes part, whatever it knows already


def test_the_chief_may_have_a_callback_that_saves_for_itself(stub_tensorflow):
    module = importlib.import_module("spark_tensorflow_distributor.training.replica_hooks")
    checkpoint = KERAS.callbacks.ModelCheckpoint()
    checkpoint.save_freq = "epoch"
    call = types.SimpleNamespace(arguments={"verbose": 0, "callbacks": [checkpoint]}, package=KERAS)
    for others, is_saved_by_all in ((b"0 1", True), (b"0 0", False)):
        collectives = types.SimpleNamespace(gather_bytes=lambda own, others=others: [own, others])
        assert module._agreed(call, types.SimpleNamespace(collectives=collectives))[1] is is_saved_by_all
