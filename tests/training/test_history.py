"""The history of runs whose ``fit`` is interrupted and resumed, compared with the history that Keras returns."""

import pytest

from spark_tensorflow_distributor import MirroredStrategyRunner


def program():
    """Nested, so that it is pickled by value."""

    def train(kill=(), folder=None):
        import os
        import signal
        import time

        import numpy as np
        import tensorflow as tf

        from spark_tensorflow_distributor import get_context

        context = get_context()
        rows = np.random.default_rng(0).random((256, 8)).astype("float32")

        class Kill(tf.keras.callbacks.Callback):
            seen = 0

            def on_train_batch_end(self, batch, logs=None):
                Kill.seen += 1
                if Kill.seen in kill and (context.attempt, context.rank) == (0, 1):
                    time.sleep(0.5)  # the last checkpoint may still be in transit
                    os.kill(os.getpid(), signal.SIGKILL)

        tf.keras.utils.set_random_seed(7)
        histories = []
        for epochs in (3, 2):
            model = tf.keras.Sequential([tf.keras.layers.Input((8,)), tf.keras.layers.Dense(1)])
            model.compile("sgd", "mse", metrics=["mae"])
            histories.append(
                model.fit(
                    rows, rows[:, 0], batch_size=32, epochs=epochs, verbose=0, callbacks=[Kill()],
                    validation_data=(rows[:64], rows[:64, 0]),
                ).history
            )  # fmt: skip
        return histories

    return train


@pytest.mark.parametrize("legacy", ["", "1"], ids=["keras", "tf_keras"])
def test_the_history_is_that_of_keras(spark, legacy, tmp_path):
    env = {"TF_USE_LEGACY_KERAS": legacy} if legacy else {}
    runner = MirroredStrategyRunner(
        num_slots=2, use_gpu=False, spark=spark, max_restarts=1, checkpoint_every="3 steps",
        checkpoint_dir=str(tmp_path), env=env,
    )  # fmt: skip
    # In the third epoch of the first fit.
    histories = runner.run(program(), kill=[21])
    report = runner.report
    assert [(entry["fit"], entry["epoch"], entry["attempt"]) for entry in report.history] == [
        (0, 0, 0), (0, 1, 0), (0, 2, 1), (1, 0, 1), (1, 1, 1),
    ]  # fmt: skip
    for fit, expected in enumerate(histories):
        logs = [entry["logs"] for entry in report.history if entry["fit"] == fit]
        assert sorted(logs[0]) == sorted(expected)
        for name, values in expected.items():
            assert [each[name] for each in logs] == pytest.approx(values)
    assert sorted(report.metrics) == ["loss", "mae", "val_loss", "val_mae"]
    assert all(entry["seconds"] > 0 and entry["rows_per_second"] > 0 for entry in report.history)
