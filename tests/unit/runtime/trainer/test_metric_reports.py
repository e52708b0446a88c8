"""``get_context().report``: what is sent, and how often."""

import threading

import numpy as np
import pytest

from spark_tensorflow_distributor import ConfigurationError
from spark_tensorflow_distributor.context import WorkerContext, set_custom_loop
from spark_tensorflow_distributor.runtime.trainer.metric_reports import MetricReports


@pytest.fixture
def sent():
    return []


@pytest.fixture
def report(sent):
    """``get_context().report`` of a chief, whose messages go to ``sent``."""
    reports = MetricReports(sent.append)
    set_custom_loop(reports)
    yield WorkerContext(0, 2, 0, 2, 0).report
    reports.flush()
    set_custom_loop(None)


def test_the_first_report_is_sent_at_once_and_later_ones_together(report, sent):
    report(1, loss=np.float32(0.5))
    assert [entry["epoch"] for entry in sent[0]["entries"]] == [1]
    assert sent[0]["entries"][0]["logs"] == {"loss": 0.5}
    assert sent[0]["entries"][0]["fit"] is None
    for step in range(2, 1000):
        report(step=step, loss=0.25, accuracy=1)
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    for timer in timers:
        timer.join(10)
    steps = [entry["epoch"] for message in sent for entry in message["entries"]]
    assert steps == list(range(1, 1000))
    assert len(sent) < 50


def test_what_is_no_number_is_refused(report, sent):
    with pytest.raises(ConfigurationError, match=r"loss=\[1\], a list; it must be a number"):
        report(1, loss=[1])
    with pytest.raises(ConfigurationError, match="step='last', a str"):
        report("last", loss=1)
    assert sent == []
