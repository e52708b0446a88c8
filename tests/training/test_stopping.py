"""Training that callbacks on the driver, or a handle, stop before the last epoch."""

import threading

import pytest

from spark_tensorflow_distributor import MirroredStrategyRunner, RunCallback, RunCancelledError


class Recorder(RunCallback):
    """Records the calls, and stops a fit after a given epoch."""

    def __init__(self, stop_after):
        self.calls, self.threads, self.stop_after = [], set(), stop_after

    def _record(self, *call):
        self.calls.append(call)
        self.threads.add(threading.current_thread().name)

    def on_run_begin(self, report):
        self._record("run", report.function)

    def on_attempt_begin(self, attempt):
        self._record("attempt", attempt)

    def on_epoch_end(self, fit, epoch, logs):
        self._record(fit, epoch)
        return (fit, epoch) == self.stop_after

    def on_attempt_end(self, report):
        self._record("attempt ended", sorted(report.failures))

    def on_run_end(self, report):
        self._record("run ended", report.status)


def program():
    """Nested, so that it is pickled by value."""

    def train(folder, epochs=6, fails=False, seconds=0.0):
        import time

        import numpy as np
        import tensorflow as tf

        from spark_tensorflow_distributor import get_context

        context = get_context()
        rows = np.random.default_rng(0).random((256, 8)).astype("float32")
        slow = tf.keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: time.sleep(seconds))
        trained = []
        for number in range(2):
            tf.keras.utils.set_random_seed(7)
            model = tf.keras.Sequential([tf.keras.layers.Input((8,)), tf.keras.layers.Dense(1)])
            model.compile("sgd", "mse")
            history = model.fit(rows, rows[:, 0], batch_size=32, epochs=epochs, verbose=0, callbacks=[slow])
            trained.append(len(history.epoch))
            if fails and number == 0 and context.attempt == 0:
                time.sleep(1)  # the last checkpoint may still be in transit
                raise RuntimeError("after the first fit")
        with open(f"{folder}/{context.rank}", "w") as file:
            file.write(repr(trained))
        return trained

    return train


def loop():
    def train():
        from spark_tensorflow_distributor import get_context

        context = get_context()
        for step in range(100_000):
            context.report(step, loss=1.0)
            if step % 10 == 0 and context.should_stop():
                return step
        return None

    return train


@pytest.fixture
def runner(spark):
    def make(**options):
        return MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, **options)

    return make


@pytest.mark.parametrize("legacy", ["", "1"], ids=["keras", "tf_keras"])
def test_a_fit_that_a_callback_has_stopped_stays_stopped(runner, tmp_path, legacy):
    recorder = Recorder(stop_after=(0, 1))
    env = {"TF_USE_LEGACY_KERAS": legacy} if legacy else {}
    made = runner(callbacks=[recorder], max_restarts=1, env=env)
    assert made.run(program(), folder=str(tmp_path), epochs=3, fails=True) == [2, 3]
    # All ranks stopped after the same epoch.
    assert {(tmp_path / str(rank)).read_text() for rank in range(2)} == {"[2, 3]"}
    assert recorder.calls == [
        ("run", "train"),
        ("attempt", 0), (0, 0), (0, 1), ("attempt ended", [0, 1]),
        ("attempt", 1), (1, 0), (1, 1), (1, 2), ("attempt ended", []),
        ("run ended", "succeeded"),
    ]  # fmt: skip
    assert recorder.threads == {"MainThread"}
    assert made.report.stopped_by == "Recorder"


def test_handles_stop_and_cancel_runs_that_share_the_cluster(runner, tmp_path):
    recorder = Recorder(stop_after=None)
    stopped = runner(callbacks=[recorder]).submit(program(), folder=str(tmp_path), epochs=1000, seconds=0.2)
    cancelled = runner().submit(program(), folder=str(tmp_path), epochs=1000, seconds=0.2)
    while not (stopped.report.history and cancelled.report.history) and not (stopped.done() or cancelled.done()):
        stopped._finished.wait(0.1)
    cancelled.cancel()
    stopped.stop()
    first, second = stopped.result(60)
    assert 1 <= first < 1000
    assert second == 1
    assert {(tmp_path / str(rank)).read_text() for rank in range(2)} == {repr([first, second])}
    assert len(stopped.report.history) == first + second
    assert recorder.threads == {"spark-tensorflow-run"}
    with pytest.raises(RunCancelledError):
        cancelled.result(60)
    assert cancelled.report.status == "cancelled"
    assert cancelled.report.history


def test_a_custom_loop_asks_whether_to_stop(runner):
    made = runner(callbacks=[Recorder(stop_after=(None, 50))])
    step = made.run(loop())
    assert 50 <= step < 100_000
    assert made.report.history[-1]["epoch"] == step
