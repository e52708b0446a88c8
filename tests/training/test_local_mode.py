"""``local_mode`` with Keras: history, callbacks and files."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, threading
import numpy as np
from spark_tensorflow_distributor import MirroredStrategyRunner, RunCallback, get_context

folder, custom = sys.argv[1], sys.argv[2] == "custom"

class Stop(RunCallback):
    def on_epoch_end(self, fit, epoch, logs):
        calls.append((fit, epoch, sorted(logs)))
        return fit == 1 and epoch == 2

calls = []

def train():
    import tensorflow as tf

    rows = np.random.default_rng(0).random((96, 3)).astype("float32")
    histories = []
    for batches in (rows, tf.data.Dataset.from_tensor_slices((rows, rows[:, 0])).batch(32)):
        model = tf.keras.Sequential([tf.keras.layers.Input((3,)), tf.keras.layers.Dense(1)])
        model.compile("sgd", "mse", steps_per_execution=2 if batches is rows else 1)
        labels = {"y": rows[:, 0], "batch_size": 32} if batches is rows else {}
        board = tf.keras.callbacks.CSVLogger(f"{get_context().log_dir}/{len(histories)}.csv")
        fitted = model.fit(
            batches, **labels, epochs=5, verbose=0, callbacks=[board], validation_data=(rows[:32], rows[:32, 0])
        )
        histories.append(fitted.history)
    other = threading.Thread(target=lambda: model.fit(rows, rows[:, 0], verbose=0))
    other.start()
    other.join()
    return histories

runner = MirroredStrategyRunner(
    num_slots=1, local_mode=True, use_gpu=False, use_custom_strategy=custom, callbacks=[Stop()], log_dir=folder
)
histories = runner.run(train)
assert [len(each["loss"]) for each in histories] == [5, 3], histories
history = runner.report.history
assert [(each["fit"], each["epoch"]) for each in history] == [(0, e) for e in range(5)] + [(1, e) for e in range(3)]
assert [each["logs"]["val_loss"] for each in history] == histories[0]["val_loss"] + histories[1]["val_loss"]
assert all(each["rows_per_second"] > 0 and each["seconds"] > 0 for each in history), history
assert calls == [(each["fit"], each["epoch"], ["loss", "val_loss"]) for each in history]
assert runner.report.stopped_by == "Stop"
assert sorted(os.listdir(folder)) == ["0.csv", "1.csv"]
import tensorflow as tf
assert "local_fits" not in tf.keras.Model.fit.__code__.co_filename
print("LOCAL", runner.report.headline())
"""


@pytest.mark.parametrize("legacy", ["", "1"], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("strategy", ["ours", "custom"])
def test_epochs_are_recorded_and_callbacks_end_training(tmp_path, monkeypatch, legacy, strategy):
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", legacy) if legacy else None
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "logs"), strategy], capture_output=True, text=True, timeout=280
    )
    assert "LOCAL succeeded" in done.stdout, done.stderr
