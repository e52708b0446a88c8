"""Runs in the background, and interrupts in notebooks."""

import os
import signal
import threading
import time

import pytest

from spark_tensorflow_distributor import RunCallback, RunCancelledError
from spark_tensorflow_distributor.config import RunnerConfig
from spark_tensorflow_distributor.runtime.driver import interrupts
from spark_tensorflow_distributor.runtime.driver.callbacks import CallbackList
from spark_tensorflow_distributor.runtime.driver.control import INTERRUPT, RunControl
from spark_tensorflow_distributor.runtime.driver.handle import RunHandle
from spark_tensorflow_distributor.runtime.driver.interrupts import first_interrupt_stops
from spark_tensorflow_distributor.runtime.driver.run import Program
from spark_tensorflow_distributor.runtime.driver.tracked_run import TrackedRun, changed_settings, plain
from spark_tensorflow_distributor.runtime.specs import RunPlan


class Gateway:
    def thread(self, target, name, *, daemon):
        return threading.Thread(target=target, name=name, daemon=daemon)


class Recorder(RunCallback):
    def __init__(self):
        self.calls = []

    def on_run_begin(self, report):
        self.calls.append(("begin", report.status))

    def on_result(self, value):
        self.calls.append(("result", value))

    def on_run_end(self, report):
        self.calls.append(("end", report.status))


def tracked(execute, recorder=None, **arguments):
    """Return a run whose launches are replaced by ``execute(control)``."""
    program = Program(b"", False, "train", None)
    callbacks = CallbackList([recorder] if recorder else [])
    run = TrackedRun(RunnerConfig(num_slots=2), Gateway(), program, RunPlan(2), arguments, callbacks)
    run._run.execute = lambda _: execute(run.control)
    return run


def test_a_handle_returns_the_value_and_the_report():
    go_on, recorder = threading.Event(), Recorder()
    handle = RunHandle(tracked(lambda _: go_on.wait() and 7, recorder, rate=0.5, password="x"), Gateway())
    assert not handle.done()
    with pytest.raises(TimeoutError, match=r"not ended within 0\.01 s"):
        handle.result(0.01)
    assert repr(handle) == "<RunHandle: train on 2 workers, running>"
    go_on.set()
    assert handle.result() == handle.result() == 7
    assert handle.done()
    assert handle.report.status == "succeeded"
    assert handle.report.arguments == {"rate": 0.5, "password": "..."}
    assert recorder.calls == [("begin", "running"), ("result", 7), ("end", "succeeded")]


def test_a_handle_raises_the_error_of_the_run():
    recorder = Recorder()

    def fail(_):
        raise ValueError("bad data")

    handle = RunHandle(tracked(fail, recorder), Gateway())
    with pytest.raises(ValueError, match="bad data"):
        handle.result(10)
    assert (handle.report.status, handle.report.error) == ("failed", "ValueError: bad data")
    assert recorder.calls == [("begin", "running"), ("end", "failed")]


def test_a_handle_stops_and_cancels():
    def train(control):
        while not control.stops["all"]:
            control.sleep(0.01)
        return control.stopped_by

    handle = RunHandle(tracked(train), Gateway())
    handle.stop()
    assert handle.result(10) == "RunHandle.stop()"
    handle = RunHandle(tracked(train), Gateway())
    handle.cancel()
    with pytest.raises(RunCancelledError):
        handle.result(10)
    assert handle.report.status == "cancelled"


@pytest.fixture
def notebook(monkeypatch):
    monkeypatch.setattr(interrupts, "in_notebook", lambda: True)


@pytest.fixture(autouse=True)
def usual_handler():
    """Python ignores interrupts if it is started in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_in_a_notebook_the_first_interrupt_stops_and_the_second_cancels(notebook):
    control, before = RunControl(), signal.getsignal(signal.SIGINT)
    stops = []

    def wait():
        with first_interrupt_stops(control):
            interrupt()
            time.sleep(0.01)
            stops.append(control.stops["all"])
            control.check()
            interrupt()
            time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        wait()
    assert stops == [True]
    with pytest.raises(RunCancelledError):
        control.check()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_before_the_workers_have_started_cancels():
    control = RunControl()
    control.stop("RunHandle.stop()")
    control.check_before_start()  # the user wants a model
    control = RunControl()
    control.stop(INTERRUPT)
    control.check()
    with pytest.raises(RunCancelledError, match="before its workers had started"):
        control.check_before_start()


def test_elsewhere_an_interrupt_keeps_its_meaning():
    control = RunControl()

    def wait():
        with first_interrupt_stops(control):
            interrupt()
            time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        wait()
    assert not control.stops["all"]


def test_in_other_threads_nothing_changes(notebook):
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def run():
        with first_interrupt_stops(RunControl()):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_settings_and_arguments_are_short_and_hide_secrets():
    config = RunnerConfig(num_slots=4, use_gpu=False, max_restarts=2, env={"B": "secret", "A": "1"})
    assert changed_settings(config) == {"num_slots": 4, "use_gpu": False, "max_restarts": 2, "env": "A, B"}
    assert plain("text", "x" * 1000) == "x" * 500 + "..."
    assert len(plain("rows", list(range(100_000)))) < 100
    nested = {"data": {"password": "a", "size": 1}, "url": "s3://me:b@host/x", "args": ["--api-key", "c", "--token=d"]}
    assert plain("config", nested) == {
        "data": {"password": "...", "size": 1},
        "url": "s3://me:...@host/x",
        "args": ["--api-key", "...", "--token=..."],
    }
    assert plain("access_key", {"id": "a"}) == "..."
    options = ["db.password=a", "++auth.api_key=b", "rate=0.5", "--conf spark.my.token=c", "s3://b/secret-1/day=2"]
    assert plain("hf_tokens", ["a"]) == plain("tokens", {"hf": "a"}) == plain("token", 7) == "..."
    assert plain("options", [options, {"accountKey": "d", "max_tokens": 512}]) == [
        ["db.password=...", "++auth.api_key=...", "rate=0.5", "--conf spark.my.token=...", "s3://b/secret-1/day=2"],
        {"accountKey": "...", "max_tokens": 512},
    ]
    assert plain("headers", [("password", "a"), ("size", "b"), ("x", 2)]) == [
        ["password", "..."],
        ["size", "b"],
        ["x", 2],
    ]
    assert plain("client", object()) == "object"
    assert [plain("value", value) for value in (None, True, 1, 0.5, "a")] == [None, True, 1, 0.5, "a"]
