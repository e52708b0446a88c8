"""What the callback sends to MLflow, and when, with a stand-in for its client."""

import sys
import types

import pytest

from helpers import clock_of
from spark_tensorflow_distributor import ConfigurationError, MLflowCallback
from spark_tensorflow_distributor.runtime.driver.callbacks import CallbackList
from spark_tensorflow_distributor.runtime.driver.report import AttemptReport, RunReport
from spark_tensorflow_distributor.tracking import mlflow as module


class Client:
    """Records the requests; fails while it is ``down``."""

    def __init__(self, tracking_uri=None):
        self.requests, self.down = [], False
        Client.last = self

    def create_run(self, experiment, *, tags, run_name):
        self.requests.append(("create_run", experiment, run_name))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return f"id of {name}"

    def log_batch(self, run, metrics=(), params=()):
        if self.down:
            raise ConnectionError("refused")
        self.requests += [("metric", *metric) for metric in metrics] + [("param", *param) for param in params]

    def set_tag(self, run, name, value):
        self.requests.append(("tag", name, value))

    def log_dict(self, run, content, name):
        self.requests.append(("artifact", name))

    log_text = log_dict

    def set_terminated(self, run, status):
        self.requests.append(("terminated", status))


@pytest.fixture
def clock(monkeypatch):
    return clock_of(monkeypatch, module, 1000.0)


@pytest.fixture
def begin(monkeypatch, clock):
    """Return a function that begins a run and returns its report, its callbacks and MLflow's client."""
    entities = types.SimpleNamespace(
        Metric=lambda name, value, when, step: (name, value, step), Param=lambda name, value: (name, value)
    )
    fake = types.SimpleNamespace(MlflowClient=Client, active_run=lambda: None, entities=entities)
    monkeypatch.setitem(sys.modules, "mlflow", fake)

    def begin(**options):
        report = RunReport(2, 2, function="train", arguments={"rate": 0.5}, settings={"num_slots": 2})
        callbacks = CallbackList([MLflowCallback(tracking_uri="x", **options)])
        callbacks.call("on_run_begin", report)
        return report, callbacks, Client.last

    return begin


def epoch(report, callbacks, fit, number, loss):
    report.history.append(
        {"fit": fit, "epoch": number, "logs": {"loss": loss}, "seconds": 2.0, "rows_per_second": None, "attempt": 0}
    )
    callbacks.on_epoch_end(report.history[-1])


def metrics(client):
    return [request[1:] for request in client.requests if request[0] == "metric"]


def test_the_run_and_its_params(begin):
    _, _, client = begin(experiment="digits", params={"rate": 0.25, "note": "x" * 600})
    assert client.requests[0] == ("create_run", "id of digits", "train")
    params = dict(request[1:] for request in client.requests if request[0] == "param")
    assert params["rate"] == "0.25"
    assert params["runner.num_slots"] == "2"
    assert len(params["note"]) == 500


def test_the_environment_selects_the_experiment(begin, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "7")
    assert begin()[2].requests[0] == ("create_run", "7", "train")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "digits")
    assert begin()[2].requests[0] == ("create_run", "id of digits", "train")


def test_metrics_have_the_epoch_as_step_and_name_later_fits(begin, clock):
    report, callbacks, client = begin()
    report.vitals[1] = {"state": "running", "cpu": 3.5, "rss": 2_000_000}
    epoch(report, callbacks, 0, 4, 0.5)
    clock(2)
    epoch(report, callbacks, 1, 0, 0.25)
    system = [("system/rank_1/memory_megabytes", 2.0), ("system/rank_1/cpu_seconds", 3.5)]
    assert metrics(client) == [
        ("loss", 0.5, 4), ("epoch_seconds", 2.0, 4), *((*each, 4) for each in system),
        ("fit2/loss", 0.25, 0), ("fit2/epoch_seconds", 2.0, 0), *((*each, 0) for each in system),
    ]  # fmt: skip


def test_frequent_metrics_are_sent_together(begin, clock):
    report, callbacks, client = begin()
    for step in range(5):
        epoch(report, callbacks, None, step, 0.5)
    assert metrics(client) == [("loss", 0.5, 0)]
    clock(1.5)
    epoch(report, callbacks, None, 5, 0.5)
    assert [step for _, _, step in metrics(client)] == [0, 1, 2, 3, 4, 5]
    epoch(report, callbacks, None, 6, 0.5)
    callbacks.call("on_attempt_end", AttemptReport(0))
    assert metrics(client)[-1] == ("loss", 0.5, 6)


def test_a_server_that_is_down_is_left_alone_for_a_while(begin, clock, caplog):
    report, callbacks, client = begin()
    client.down = True
    for step in range(10):
        epoch(report, callbacks, 0, step, 0.5)
        clock(2)
    assert len(caplog.records) == 1
    client.down = False
    callbacks.call("on_attempt_end", AttemptReport(0))
    assert metrics(client) == []
    report.status = "failed"
    callbacks.call("on_run_end", report)
    assert [step for name, _, step in metrics(client) if name == "loss"] == list(range(10))
    assert client.requests[-1] == ("terminated", "FAILED")


def test_a_model_that_is_none_is_a_warning(begin, caplog):
    _, callbacks, _ = begin(log_model=True)
    callbacks.call("on_result", {"weights": []})
    assert "returns a Keras model; it returned a dict" in caplog.text


def test_without_mlflow_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigurationError, match=r"spark-tensorflow-distributor\[mlflow\]"):
        MLflowCallback()
