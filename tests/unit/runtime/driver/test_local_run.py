"""The report and the callbacks of ``local_mode``, without Spark and TensorFlow."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from spark_tensorflow_distributor import (
    ClusterError,
    ConfigurationError,
    MirroredStrategyRunner,
    RunCallback,
    context,
    get_context,
)


class Recorder(RunCallback):
    """Records its calls; ends the custom loop after a step."""

    def __init__(self, last=None):
        self.calls, self._last = [], last

    def on_run_begin(self, report):
        self.calls.append(("run", report.status))

    def on_attempt_begin(self, attempt):
        self.calls.append(("attempt", attempt))

    def on_epoch_end(self, fit, epoch, logs):
        self.calls.append(("epoch", fit, epoch, logs))
        return epoch == self._last

    def on_attempt_end(self, report):
        self.calls.append(("attempt ended", sorted(report.workers), report.root_cause))

    def on_result(self, value):
        self.calls.append(("result", value))

    def on_run_end(self, report):
        self.calls.append(("run ended", report.status))


def runner(*callbacks):
    return MirroredStrategyRunner(
        num_slots=1, local_mode=True, use_gpu=False, use_custom_strategy=True, callbacks=callbacks
    )


def loop(steps):
    done = 0
    for step in range(steps):
        get_context().report(step, loss=1 / (step + 1))
        done = step
        if get_context().should_stop():
            break
    return done


def test_callbacks_follow_the_run_and_end_a_custom_loop(caplog):
    recorder = Recorder(last=1)
    made = runner(recorder)
    assert made.run(loop, steps=5) == 1
    assert recorder.calls == [
        ("run", "running"), ("attempt", 0), ("epoch", None, 0, {"loss": 1.0}), ("epoch", None, 1, {"loss": 0.5}),
        ("attempt ended", [0], None), ("result", 1), ("run ended", "succeeded"),
    ]  # fmt: skip
    report = made.report
    assert [(each["epoch"], each["logs"], each["attempt"]) for each in report.history] == [
        (0, {"loss": 1.0}, 0), (1, {"loss": 0.5}, 0),
    ]  # fmt: skip
    assert (report.function, report.arguments, report.stopped_by) == ("loop", {"steps": 5}, "Recorder")
    assert report.workers[0].exit == "ok"
    assert report.workers[0].seconds["train"] < report.seconds
    assert "stops training" in caplog.text
    assert "succeeded" in str(report)
    assert "<svg" in report.to_html()
    assert "1 worker" in repr(made)
    assert context._custom_loop is None


def test_a_failing_run_is_reported_and_its_exception_unchanged():
    recorder = Recorder()
    made = runner(recorder)
    with pytest.raises(ZeroDivisionError):
        made.run(lambda: 1 / 0)
    assert recorder.calls[-2:] == [("attempt ended", [0], 0), ("run ended", "failed")]
    failure = made.report.attempts[0].failures[0]
    assert (failure.kind, type(failure.exception)) == ("exception", ZeroDivisionError)
    assert "1 / 0" in failure.traceback
    assert "ZeroDivisionError" in str(made.report)


def test_an_interrupted_run_is_reported():
    made = runner()

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made.run(interrupted)
    assert made.report.interrupted
    assert made.report.attempts[0].failures == {}
    assert made.report.workers[0].exit == "interrupted"


def test_runs_of_several_threads_wait_for_each_other_and_nested_ones_do_not():
    inside, most = [], []

    def train(number):
        inside.append(number)
        most.append(len(inside))
        time.sleep(0.02)
        assert os.environ["NUMBER"] == str(number)
        inside.remove(number)
        return number

    def run(number):
        made = MirroredStrategyRunner(
            num_slots=1, local_mode=True, use_gpu=False, use_custom_strategy=True, env={"NUMBER": str(number)}
        )
        return made.run(lambda: made.run(train, number=number))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(8))) == list(range(8))
    assert set(most) == {1}
    assert "NUMBER" not in os.environ


def test_a_failing_callback_does_not_fail_the_run(caplog):
    class Failing(RunCallback):
        def on_epoch_end(self, fit, epoch, logs):
            raise OSError("unreachable")

    assert runner(Failing()).run(loop, steps=3) == 2
    assert "Failing.on_epoch_end raised an exception" in caplog.text


def test_metrics_must_be_numbers():
    with pytest.raises(ConfigurationError, match="loss='high'"):
        runner().run(lambda: get_context().report(0, loss="high"))


def test_without_tensorflow_the_error_names_the_interpreter(monkeypatch):
    name = "spark_tensorflow_distributor.training.strategy"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    local = MirroredStrategyRunner(num_slots=1, local_mode=True, use_gpu=False)
    command = f"`{sys.executable} -m pip install tensorflow`"
    with pytest.raises(ClusterError, match="TensorFlow cannot be imported by the driver's Python") as caught:
        local.run(lambda: None)
    assert command in str(caught.value)
