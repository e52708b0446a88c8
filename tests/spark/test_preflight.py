"""Runs that are rejected immediately, before a job starts, and their errors."""

import threading
import time
from pathlib import Path

import pytest

import spark_tensorflow_distributor as std
from helpers import WORKER_PATH
from spark_tensorflow_distributor import MirroredStrategyRunner
from spark_tensorflow_distributor.runtime.driver.spark import SparkGateway

ENV = {"PYTHONPATH": WORKER_PATH, "TF_USE_LEGACY_KERAS": "1"}


@pytest.fixture
def check_rejected(spark):
    """Return a check that a run is rejected with an error within two seconds, without a Spark job."""

    def check(error, words, function=lambda: 1, conf=None, num_slots=2, **kwargs):
        tracker = spark.sparkContext.statusTracker()
        spark.sparkContext.setJobGroup("preflight", "preflight")
        for key, value in (conf or {}).items():
            spark.conf.set(key, value)
        try:
            runner = MirroredStrategyRunner(num_slots=num_slots, use_gpu=False, spark=spark, env=ENV)
            started = time.monotonic()
            with pytest.raises(error, match=words) as caught:
                runner.run(function, **kwargs)
            assert time.monotonic() - started < 2
            assert not tracker.getJobIdsForGroup("preflight")
            return caught.value
        finally:
            for key in conf or {}:
                spark.conf.unset(key)
            spark.sparkContext.setLocalProperty("spark.jobGroup.id", None)

    return check


def test_too_few_slots_are_rejected(check_rejected):
    error = check_rejected(std.InsufficientSlotsError, "needs 9 Spark tasks at the same time", num_slots=9)
    for words in ("has 4 slots", "local[9]", "num_slots=4", "spark.task.cpus"):
        assert words in str(error)


@pytest.mark.parametrize("key", ["spark.io.encryption.enabled", "spark.network.crypto.enabled", "spark.ssl.enabled"])
def test_encryption_that_is_not_possible(check_rejected, monkeypatch, key):
    conf = SparkGateway.conf
    monkeypatch.setattr(SparkGateway, "conf", lambda self, name: "true" if name == key else conf(self, name))
    monkeypatch.setattr("spark_tensorflow_distributor.runtime.driver.spark.can_encrypt", lambda: False)
    check_rejected(std.EncryptionUnsupportedError, f"{key}=true")


def test_dynamic_allocation(check_rejected, monkeypatch):
    conf = SparkGateway.conf
    wanted = {"spark.dynamicAllocation.enabled": "true", "spark.master": "yarn"}
    monkeypatch.setattr(SparkGateway, "conf", lambda self, name: wanted.get(name) or conf(self, name))
    check_rejected(std.ClusterError, "SPARK-24942")


def test_the_opt_out_of_1_0_0(spark, monkeypatch, caplog):
    conf = SparkGateway.conf
    wanted = {"spark.ssl.enabled": "true", "tensorflow.spark.distributor.ignoreSsl": "true"}
    monkeypatch.setattr(SparkGateway, "conf", lambda self, name: wanted.get(name) or conf(self, name))
    assert MirroredStrategyRunner(num_slots=1, use_gpu=False, spark=spark, env=ENV).run(lambda: 1) == 1
    assert "spark.ssl.enabled=true" in caplog.text


def test_unpicklable_objects_are_rejected(check_rejected, spark):
    handle = threading.Lock()
    check_rejected(std.SerializationError, "The variable 'handle'", function=lambda: handle)
    check_rejected(std.SerializationError, "The argument 'lock'", function=lambda lock: 1, lock=handle)
    check_rejected(std.SerializationError, "'spark', .*a SparkSession", function=lambda: spark.range(2))
    pair = [spark.range(2)]
    check_rejected(std.DataError, r"'pair' is a list.*run\(train, pair_1=", function=lambda pair: 1, pair=pair)
    check_rejected(std.ConfigurationError, "unexpected keyword argument", function=lambda: 1, surprise=1)
    check_rejected(std.ConfigurationError, "cannot be read on the driver", function="nowhere.py")
    check_rejected(std.ConfigurationError, "args=", function="nowhere.py", other=1)


def test_another_python_in_local_mode_is_rejected(check_rejected, spark, monkeypatch):
    monkeypatch.setattr(spark.sparkContext, "pythonExec", "/nowhere/python3")
    error = check_rejected(std.ClusterError, "would run '/nowhere/python3', which is not an executable file")
    assert str(error).count("\n") == 1


def test_gpus_without_gpu_scheduling(spark):
    started = time.monotonic()
    with pytest.raises(std.GpuConfigurationError, match=r"spark\.task\.resource\.gpu\.amount is not set"):
        MirroredStrategyRunner(num_slots=2, spark=spark)
    with pytest.raises(std.GpuConfigurationError, match=r"spark\.driver\.resource\.gpu\.amount"):
        MirroredStrategyRunner(num_slots=2, spark=spark, local_mode=True).run(lambda: 1)
    assert time.monotonic() - started < 2


def test_a_python_without_tensorflow(spark):
    env = {"PYTHONPATH": str(Path(__file__).parent.parent / "stubs_missing")}
    runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, env=env)
    with pytest.raises(std.ClusterError, match=r"TensorFlow cannot be imported .* spark\.pyspark\.python"):
        runner.run(lambda: 1)


def test_the_attributes_of_1_0_0(spark):
    runner = MirroredStrategyRunner(num_slots=3, use_gpu=False)
    assert runner.sc is spark.sparkContext
    assert runner.get_num_tasks() == 3


def test_the_run_waits_for_executors_to_register(spark, monkeypatch):
    import dataclasses

    facts = SparkGateway.facts
    asked = []

    def few_at_first(self, config):
        asked.append(1)
        found = facts(self, config)
        return found if len(asked) > 6 else dataclasses.replace(found, slots=1, may_grow=True)

    monkeypatch.setattr(SparkGateway, "facts", few_at_first)
    assert MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, env=ENV).run(lambda: 1) == 1
    assert len(asked) > 6
    asked.clear()
    monkeypatch.setattr(
        SparkGateway, "facts", lambda self, config: dataclasses.replace(facts(self, config), slots=1, may_grow=True)
    )
    started = time.monotonic()
    runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, env=ENV, start_timeout=1)
    with pytest.raises(std.InsufficientSlotsError):
        runner.run(lambda: 1)
    assert 1 <= time.monotonic() - started < 5


def test_a_restart_may_use_fewer_slots(spark, monkeypatch):
    import dataclasses

    facts = SparkGateway.facts
    lost = []

    def look(self, config):
        found = facts(self, config)
        return dataclasses.replace(found, slots=1) if lost else found

    monkeypatch.setattr(SparkGateway, "facts", look)

    def train():
        place = std.get_context()
        if place.attempt == 0:
            raise RuntimeError("a host is gone")
        return place.world_size

    from spark_tensorflow_distributor.runtime.driver import outcome

    error_of = outcome.error_of
    monkeypatch.setattr(outcome, "error_of", lambda *args: (lost.append(1), error_of(*args))[1])
    runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, env=ENV, max_restarts=1, min_slots=1)
    assert runner.run(train) == 1
    assert len(runner.report.attempts) == 2
