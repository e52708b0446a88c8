"""``local_mode`` with Keras: history, callbacks and files, and the scope of its strategy."""

import contextlib
import subprocess
import sys
import threading

import numpy as np
import pytest

from spark_tensorflow_distributor.training.strategy import local_scope

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


@pytest.fixture
def keras(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    import tensorflow as tf

    return tf.keras


def fitted(keras, *, clears=False, **options):
    """Return the losses of a small training."""
    keras.utils.set_random_seed(1)
    x = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
    if clears:
        keras.backend.clear_session()
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1, **options), "mse")
    return model.fit(x, x[:, :1], batch_size=4, epochs=2, verbose=0).history["loss"]


@pytest.mark.parametrize("clears", [False, True])
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}])
def test_the_numbers_are_those_without_a_strategy(keras, options, clears):
    expected = fitted(keras, **options)
    with local_scope():
        assert fitted(keras, clears=clears, **options) == expected


@pytest.mark.parametrize("error", [None, ValueError("the labels are missing")])
def test_the_scope_outlives_clear_session_and_ends_with_the_run(keras, error):
    import tensorflow as tf

    strategies = set()
    with pytest.raises(ValueError, match="labels") if error else contextlib.nullcontext(), local_scope():
        for _ in range(3):
            strategies.add(tf.distribute.get_strategy())
            with tf.distribute.get_strategy().variables.collected() as created:
                tf.Variable(1.0)
            assert len(created) == 1
            with tf.device("/device:CPU:0"), tf.distribute.get_strategy().scope():
                keras.backend.clear_session()
        strategies.add(tf.distribute.get_strategy())
        if error:
            raise error
    (strategy,) = strategies
    assert isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    for _ in range(2):
        assert not tf.distribute.has_strategy()
        with strategy.variables.collected() as created:
            tf.Variable(1.0)
        assert not created
        assert not tf.compat.v1.get_default_graph()._distribution_strategy_stack
        keras.backend.clear_session()  # must not enter the scope again


def test_clear_session_in_another_thread_does_not_touch_the_scope(keras):
    import tensorflow as tf

    def clear():
        keras.backend.clear_session()
        found.append(tf.distribute.has_strategy())

    found = []
    with local_scope():
        thread = threading.Thread(target=clear)
        thread.start()
        thread.join()
        assert tf.distribute.has_strategy()
    assert found == [False]


def test_a_custom_loop_uses_the_datasets_as_they_are(keras):
    import tensorflow as tf

    with local_scope():
        strategy = tf.distribute.get_strategy()
        total = tf.Variable(0, dtype=tf.int64)
        data = tf.data.Dataset.range(5).batch(2)
        for batches in (
            strategy.experimental_distribute_dataset(data),
            strategy.distribute_datasets_from_function(lambda context: data.shard(context.num_input_pipelines, 0)),
        ):
            for batch in batches:
                value = strategy.run(lambda batch: total.assign_add(tf.reduce_sum(batch)), args=(batch,))
                assert strategy.reduce("SUM", value, axis=None) == total
        assert total == 20
