"""Epochs at the driver: callbacks, requests to stop, and what is sent to the workers."""

import logging

import pytest

from spark_tensorflow_distributor import ConfigurationError, RunCallback, RunCancelledError
from spark_tensorflow_distributor.runtime.driver.callbacks import CallbackList
from spark_tensorflow_distributor.runtime.driver.control import RunControl
from spark_tensorflow_distributor.runtime.driver.epochs import EpochEvents
from spark_tensorflow_distributor.runtime.driver.report import RunReport


class Recorder(RunCallback):
    def __init__(self, answer=None):
        self.seen, self.answer = [], answer

    def on_epoch_end(self, fit, epoch, logs):
        self.seen.append((fit, epoch, logs))
        logs.clear()
        return self.answer


class Broken(RunCallback):
    def on_epoch_end(self, fit, epoch, logs):
        raise KeyError("no such metric")


def message(number, fit=0, epoch=0, **details):
    entry = {"fit": fit, "epoch": epoch, "logs": {"loss": 0.5}, "seconds": 1.0, "rows_per_second": None}
    return {"type": "epochs", "number": number, "entries": [entry], **details}


class Launch:
    """The parts of a launch that an epoch reaches."""

    def __init__(self, *callbacks):
        self.report, self.control = RunReport(2, 2), RunControl()
        self.epochs = EpochEvents(self.report, 0, CallbackList(callbacks), self.control)


NO_STOPS = {"all": False, "fits": []}


def test_an_epoch_reaches_the_history_and_all_callbacks():
    recorders = Recorder(), Recorder(False)
    launch = Launch(*recorders)
    answer = launch.epochs.take(0, message(0))
    assert answer == [(0, {"type": "epochs_taken", "number": 0, "stops": NO_STOPS})]
    launch.epochs.take(0, message(0))  # on a second connection
    assert [each.seen for each in recorders] == [[(0, 0, {})]] * 2
    assert launch.report.history[0]["logs"] == {"loss": 0.5}  # callbacks got copies


def test_true_stops_this_fit_only():
    launch = Launch(Recorder(), Recorder(True))
    for rank in (0, 1):
        assert launch.epochs.on_phase(rank) == []
    ((_, answer),) = launch.epochs.take(0, message(0, fit=3))
    assert answer["stops"] == {"all": False, "fits": [3]}
    request = {"type": "stop_training", "stops": {"all": False, "fits": [3]}}
    assert launch.epochs.new_requests() == [(0, request), (1, request)]
    assert launch.epochs.new_requests() == []
    assert launch.control.stopped_by == "Recorder"


def test_a_failing_callback_is_logged_and_neither_stops_nor_hides_the_others(caplog):
    recorder = Recorder()
    launch = Launch(Broken(), recorder)
    launch.epochs.take(0, message(0))
    launch.epochs.take(0, message(1, epoch=1))
    assert len(recorder.seen) == len(launch.report.history) == 2
    assert [bool(record.exc_info) for record in caplog.records] == [True, False]
    assert "Broken.on_epoch_end raised an exception; the run continues: KeyError" in caplog.text
    assert launch.control.stops == NO_STOPS


def test_callbacks_are_not_called_for_restored_epochs():
    recorder = Recorder()
    Launch(recorder).epochs.take(0, message(0, restored=True))
    assert recorder.seen == []


def test_a_request_reaches_workers_that_train_later_or_reconnect(caplog):
    launch = Launch()
    launch.control.stop("RunHandle.stop()")
    assert launch.epochs.new_requests() == []
    assert "RunHandle.stop() stops training: every fit() ends" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING
    assert launch.epochs.on_connected(1) == []  # its agent has no trainer yet
    request = {"type": "stop_training", "stops": {"all": True, "fits": []}}
    assert launch.epochs.on_phase(1) == [(1, request)]
    assert launch.epochs.on_phase(1) == []
    assert launch.epochs.on_connected(1) == [(1, request)]


def test_a_cancelled_run_raises():
    launch = Launch()
    launch.epochs.new_requests()
    launch.control.cancel()
    with pytest.raises(RunCancelledError):
        launch.epochs.new_requests()
    with pytest.raises(RunCancelledError):
        launch.control.sleep(60)


def test_the_time_in_callbacks_is_known(monkeypatch):
    from spark_tensorflow_distributor.runtime.driver import epochs

    clock = iter([10.0, 40.0])
    monkeypatch.setattr(epochs.time, "monotonic", lambda: next(clock))
    launch = Launch(Recorder())
    launch.epochs.take(0, message(0))
    assert launch.epochs.seconds == 30.0


@pytest.mark.parametrize(
    ("callbacks", "text"),
    [
        ([object()], "has an object, which is not a RunCallback"),
        ([RunCallback], r"has the class RunCallback; .* Pass RunCallback\(\.\.\.\)"),
        (7, "callbacks is an int"),
    ],
)
def test_other_objects_are_no_callbacks(callbacks, text):
    with pytest.raises(ConfigurationError, match=text):
        CallbackList(callbacks)


def test_one_callback_need_not_be_in_a_list():
    recorder = Recorder(True)
    assert CallbackList(recorder).on_epoch_end(message(0)["entries"][0]) == "Recorder"
    assert not CallbackList()
