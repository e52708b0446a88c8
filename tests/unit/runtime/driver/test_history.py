"""The history of a run, over attempts, restarts and lost connections."""

import logging

import pytest

from spark_tensorflow_distributor.runtime.driver import history
from spark_tensorflow_distributor.runtime.driver.history import AttemptHistory
from spark_tensorflow_distributor.runtime.driver.report import RunReport


def message(number, *keys, loss=0.5, **details):
    entries = [
        {"fit": fit, "epoch": epoch, "logs": {"loss": loss}, "seconds": 1.5, "rows_per_second": 10.0}
        for fit, epoch in keys
    ]
    return {"type": "epochs", "number": number, "entries": entries, **details}


def keys(entries):
    return [(entry["fit"], entry["epoch"], entry["attempt"]) for entry in entries]


def test_epochs_are_added_in_order_and_once():
    entries = []
    attempt = AttemptHistory(entries, 0)
    assert keys(attempt.take(message(0, (0, 0)))) == [(0, 0, 0)]
    assert attempt.take(message(0, (0, 0))) == []
    assert keys(attempt.take(message(1, (0, 1), (1, 0)))) == [(0, 1, 0), (1, 0, 0)]
    assert keys(entries) == [(0, 0, 0), (0, 1, 0), (1, 0, 0)]
    assert entries[0] == {
        "fit": 0, "epoch": 0, "logs": {"loss": 0.5}, "seconds": 1.5, "rows_per_second": 10.0, "attempt": 0,
    }  # fmt: skip


def test_an_attempt_replaces_the_epochs_that_it_trains_again():
    entries = []
    AttemptHistory(entries, 0).take(message(0, (0, 0), (0, 1), (1, 0), (1, 1), (1, 2)))
    second = AttemptHistory(entries, 1)
    second.take(message(0, (1, 1)))
    assert keys(entries) == [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 1)]
    second.take(message(1, (1, 2)))
    AttemptHistory(entries, 2).take(message(0, (0, 0)))  # nothing could be resumed
    assert keys(entries) == [(0, 0, 2)]


def test_reported_steps_are_replaced_apart_from_epochs():
    entries = []
    AttemptHistory(entries, 0).take(message(0, (0, 0), (None, 10), (None, 20), (None, 30)))
    second = AttemptHistory(entries, 1)
    second.take(message(0, (None, 20)))
    assert keys(entries) == [(0, 0, 0), (None, 10, 0), (None, 20, 1)]
    second.take(message(1, (None, 5)))  # a second loop that counts from the beginning
    assert keys(entries)[2:] == [(None, 20, 1), (None, 5, 1)]


def test_a_checkpoint_fills_gaps_only():
    entries = []
    AttemptHistory(entries, 0).take(message(0, (0, 0), (1, 0)))
    second = AttemptHistory(entries, 1)
    assert second.take(message(0, (0, 0), (0, 1), loss=0.1, restored=True)) == []
    assert keys(entries) == [(0, 0, 0), (0, 1, None), (1, 0, 0)]
    second.take(message(1, (0, 1)))
    assert keys(entries) == [(0, 0, 0), (0, 1, 1)]
    assert entries[0]["logs"] == {"loss": 0.5}


def test_a_gap_is_a_warning(caplog):
    attempt = AttemptHistory([], 0)
    attempt.take(message(0, (0, 0)))
    attempt.take(message(4, (0, 4)))
    assert "lacks entries" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


def test_many_reported_steps_are_thinned_out_evenly(monkeypatch):
    monkeypatch.setattr(history, "MAX_REPORTED", 8)
    entries = []
    attempt = AttemptHistory(entries, 0)
    attempt.take(message(0, (0, 0)))
    for step in range(20):
        attempt.take(message(step + 1, (None, step)))
    steps = [entry["epoch"] for entry in entries if entry["fit"] is None]
    assert steps[-1] == 19
    assert 4 <= len(steps) <= 8
    assert keys(entries)[0] == (0, 0, 0)


def test_the_report_has_the_last_metrics():
    report = RunReport(2, 2)
    assert str(report).startswith("Run in progress, 0 attempt(s), 2 worker(s)")
    assert report.metrics == {}
    attempt = AttemptHistory(report.history, 0)
    attempt.take(message(0, (0, 0)))
    attempt.take(message(1, (0, 1), loss=0.25))
    assert report.metrics == {"loss": 0.25}
    assert "Last epoch: fit 1, epoch 2: loss=0.25" in str(report)
    assert report.to_dict()["history"] == report.history
    attempt.take(message(2, (None, 300), loss=0.125))
    assert "Last reported step 300: loss=0.125" in str(report)


def test_the_history_as_a_table():
    pytest.importorskip("pandas")
    report = RunReport(2, 2)
    assert list(report.to_pandas().columns) == ["fit", "epoch", "seconds", "rows_per_second", "attempt"]
    attempt = AttemptHistory(report.history, 0)
    attempt.take(message(0, (0, 0), (None, 7)))
    report.history[0]["logs"] = {"loss": 0.5, "epoch": 3.0}
    table = report.to_pandas()
    assert table["loss"].tolist() == [0.5, 0.5]
    assert table["epoch"].tolist() == [0, 7]
    assert table["epoch_metric"][0] == 3.0
    assert table["fit"].isna().tolist() == [False, True]
