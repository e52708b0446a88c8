"""Stopped sessions, executors that register late, and DataFrames without rows."""

import time

import pytest

from clusters import StandaloneCluster, run_program

PROGRAM = "session_run.py"


def test_stopped_sessions_and_empty_frames(tmp_path):
    result, _ = run_program(PROGRAM, str(tmp_path), conf={"spark.master": "local[2]"})
    assert (result["first"], result["again"]) == (1, 2)
    kind, message = result["empty"]
    assert kind == "DataError", message
    assert "'train_data', 'more' have no rows" in message
    kind, message = result["during"]
    assert kind == "ClusterError", message
    assert "The SparkSession was stopped during the run" in message
    assert result["after"][0] == result["explicit"][0] == "ClusterError"
    assert result["old_frame"][0] == "DataError"
    assert "'data' belongs to a SparkSession that has been stopped" in result["old_frame"][1]
    assert "no other one is active" in result["after"][1]
    assert "passed as spark= has been stopped" in result["explicit"][1]


@pytest.fixture
def cluster_without_workers(tmp_path):
    made = StandaloneCluster(tmp_path, hosts=())
    yield made
    made.close()


def test_executors_that_come_late(cluster_without_workers):
    cluster = cluster_without_workers
    # This setting, 30 s by default, used to be the limit.
    conf = {"spark.scheduler.maxRegisteredResourcesWaitingTime": "1s", "spark.executor.memory": "512m"}
    result, out = cluster.drive("late_run.py", "4", conf=conf)
    assert result["error"] == "InsufficientSlotsError", out
    assert "No executor has registered" in result["message"]
    driver = cluster.start_driver("late_run.py", "100", conf=conf)
    while "STARTED" not in driver.stdout.readline():
        assert driver.poll() is None
    time.sleep(2.5)
    cluster.start_worker("127.0.0.1")
    out, _ = driver.communicate(timeout=120)
    assert 'RESULT {"value": 5}' in out
    assert "Waiting for executors: 0 registered, with 0 of 2 slots. Giving up after start_timeout=100 s" in out
