"""Metrics that a training function itself reports, across restarts and in runs that fail or are interrupted."""

import os
import signal
import threading
import time

import pytest

import spark_tensorflow_distributor as std
from helpers import WORKER_PATH, wait_until
from spark_tensorflow_distributor import MirroredStrategyRunner, TrainingFailedError

ENV = {"PYTHONPATH": WORKER_PATH, "TF_USE_LEGACY_KERAS": "1"}


@pytest.fixture
def runner(spark):
    def make(**options):
        return MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, env=ENV, **options)

    return make


def steps(report):
    return [(entry["epoch"], entry["attempt"]) for entry in report.history]


def test_a_loop_that_is_restarted_reports_each_step_once(runner):
    def train():
        context = std.get_context()
        first = context.latest_checkpoint() or 0
        for step in range(first, 6):
            context.report(step, loss=1 / (step + 1))
            if step == 3 and context.attempt == 0:
                time.sleep(1)  # the last checkpoint may still be in transit
                raise RuntimeError("once")
            context.save_checkpoint(step + 1)
        return first

    made = runner(max_restarts=1)
    assert made.run(train) == 3
    assert steps(made.report) == [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1)]
    assert made.report.metrics == {"loss": 1 / 6}


def test_a_failed_run_keeps_its_history(runner):
    def train():
        std.get_context().report(1, loss=0.5)
        std.get_context().report(2, loss=0.25)
        raise ValueError("the end")

    made = runner()
    with pytest.raises(TrainingFailedError):
        made.run(train)
    assert steps(made.report) == [(1, 0), (2, 0)]


def test_an_interrupted_run_keeps_its_history(runner):
    def train():
        std.get_context().report(1, loss=0.5)
        time.sleep(60)

    made = runner()

    def interrupt():
        if wait_until(lambda: made.report is not None and made.report.history, 60):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        made.run(train)
    thread.join()
    assert steps(made.report) == [(1, 0)]
    assert len(made.report.attempts) == 1
    assert made.report.attempts[0].seconds > 0
    assert not made.report.succeeded


def test_the_history_arrives_without_a_channel(runner, monkeypatch):
    from spark_tensorflow_distributor.runtime.driver.spark import SparkGateway

    monkeypatch.setattr(SparkGateway, "channel_address", lambda self: ("127.0.0.1", ("127.0.0.2",)))

    def train():
        for step in range(3):
            std.get_context().report(step, loss=step)

    made = runner()
    made.run(train)
    assert made.report.workers[0].rendezvous == "allGather"
    assert steps(made.report) == [(0, 0), (1, 0), (2, 0)]
