"""Callbacks: decisions are the same on all ranks, and files are written once."""

import os

import numpy as np

from .table import BATCH, ROWS, case, dataset, dense, digits, fit, outcome, wait_for_all


def folder():
    """Return a folder that all ranks of the group share."""
    return os.environ["CONFORMANCE_FOLDER"]


@case()
def model_checkpoint(keras):
    x, y = digits()
    model = dense(keras)
    callback = keras.callbacks.ModelCheckpoint(
        os.path.join(folder(), "best.keras"), monitor="val_loss", save_best_only=True, verbose=0
    )
    history = fit(model, x, y, epochs=3, validation_data=(x[:100], y[:100]), callbacks=[callback])
    wait_for_all()
    best = keras.models.load_model(os.path.join(folder(), "best.keras"))
    wait_for_all()
    return outcome(best, history, best=callback.best, files=len(os.listdir(folder())))


@case()
def model_checkpoint_of_the_chief(keras):
    """Only the chief has the callback, as is common in programs."""
    import tensorflow as tf

    x, y = digits()
    model = dense(keras)
    resolver = tf.distribute.get_strategy().cluster_resolver
    is_chief = resolver is None or resolver.task_id == 0
    path = os.path.join(folder(), "last.weights.h5")
    callbacks = [keras.callbacks.ModelCheckpoint(path, save_weights_only=True)] if is_chief else []
    history = fit(model, x, y, callbacks=callbacks)
    wait_for_all()
    other = dense(keras)
    other.load_weights(path)
    wait_for_all()
    return outcome(other, history)


@case()
def model_checkpoint_by_batches(keras):
    x, y = digits()
    model = dense(keras)
    callback = keras.callbacks.ModelCheckpoint(
        os.path.join(folder(), "{epoch}-{batch}.weights.h5"), save_freq=3, save_weights_only=True
    )
    history = fit(model, x, y, callbacks=[callback])
    wait_for_all()
    return outcome(model, history, files=len(os.listdir(folder())))


@case()
def backup_and_restore(keras):
    """Training is interrupted in the third epoch and restored from a folder that all ranks share."""

    class Interrupted(Exception):
        pass

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise Interrupted

    x, y = digits()
    backup = os.path.join(folder(), "backup")
    model = dense(keras)
    try:
        fit(model, x, y, epochs=4, callbacks=[keras.callbacks.BackupAndRestore(backup), Interrupt()])
    except Interrupted:
        pass
    wait_for_all()
    keras.utils.set_random_seed(99)
    again = dense(keras)
    history = fit(again, x, y, epochs=4, callbacks=[keras.callbacks.BackupAndRestore(backup)])
    return outcome(again, history, epochs=len(history.history["loss"]))


@case()
def early_stopping(keras):
    x, y = digits()
    model = dense(keras)
    callback = keras.callbacks.EarlyStopping("val_loss", min_delta=0.5, patience=1, restore_best_weights=True)
    history = fit(model, x, y, epochs=6, validation_data=(x[:100], y[:100]), callbacks=[callback])
    return outcome(model, history, stopped=callback.stopped_epoch)


@case()
def reduce_on_plateau(keras):
    x, y = digits()
    model = dense(keras, keras.optimizers.SGD(1.0))
    callback = keras.callbacks.ReduceLROnPlateau("loss", factor=0.3, patience=1, min_delta=0.5)
    return outcome(model, fit(model, x, y, epochs=4, callbacks=[callback]))


@case()
def learning_rate_scheduler(keras):
    x, y = digits()
    model = dense(keras)
    callback = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5)
    return outcome(model, fit(model, x, y, epochs=3, callbacks=[callback]))


@case()
def tensorboard(keras):
    x, y = digits()
    model = dense(keras)
    callback = keras.callbacks.TensorBoard(folder(), histogram_freq=1, update_freq=2)
    history = fit(model, x, y, validation_data=(x[:100], y[:100]), callbacks=[callback])
    wait_for_all()
    files = [name for _, _, names in os.walk(folder()) for name in names if "tfevents" in name]
    wait_for_all()
    return outcome(model, history, files=len(files))


@case()
def csv_logger(keras):
    x, y = digits()
    model = dense(keras)
    history = fit(model, x, y, callbacks=[keras.callbacks.CSVLogger(os.path.join(folder(), "log.csv"), append=True)])
    wait_for_all()
    with open(os.path.join(folder(), "log.csv")) as file:
        rows = [line.replace("NA", "nan").split(",") for line in file.read().strip().splitlines()[1:]]
    return outcome(model, history, rows=np.asarray(rows, "float64"))


@case()
def terminate_on_nan(keras):
    """Only one worker has the row that makes the loss NaN."""
    x, y = digits()
    x = x.copy()
    x[2 * BATCH + 1] = np.nan
    model = dense(keras)
    history = fit(model, x, y, epochs=3, callbacks=[keras.callbacks.TerminateOnNaN()])
    return {"epochs": np.asarray(len(history.epoch))}


@case()
def decision_in_a_batch(keras):
    """A custom callback stops training because of a step's loss, which differs for a worker's own rows."""
    seen = []

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(float(logs["loss"]))
            if logs["loss"] < 2.1:
                self.model.stop_training = True

    x, y = digits()
    model = dense(keras)
    history = fit(model, x, y, epochs=4, callbacks=[Stop()])
    return outcome(model, history, seen=seen)


@case()
def lambda_callback(keras):
    x, y = digits()
    model = dense(keras)
    losses = []
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(float(logs["loss"])))
    history = fit(model, dataset(x, y), callbacks=[callback])
    return outcome(model, history, losses=losses, rows=ROWS)
