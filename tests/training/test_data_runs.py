"""DataFrames in local mode, over Connect and on a cluster, and failures while rows travel to the workers."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from pyspark import cloudpickle

from clusters import HAS_CONNECT, NO_CONNECT, StandaloneCluster, run_program
from helpers import wait_until
from spark_tensorflow_distributor import (
    ConfigurationError,
    DataError,
    MirroredStrategyRunner,
    TrainingFailedError,
)

# The workers cannot import this module.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

PROGRAM = "data_run.py"


def check(result):
    assert result["ids"] == list(range(1001))
    assert result["loss"][-1] < 0.5 * result["loss"][0]
    assert result["val_loss"][-1] < result["val_loss"][0]
    if "resumed" in result:
        assert result["resumed"]["attempt"] == 1
        assert result["resumed"]["loss"] == pytest.approx(result["loss"], rel=1e-4)
        assert result["resumed"]["val_loss"] == pytest.approx(result["val_loss"], rel=1e-4)
    assert result["environment"]
    kind, module, message = result["broken"]
    assert module.startswith(("pyspark.", "py4j.")), result["broken"]  # py4j: PySpark 3.5
    assert "no such luck" in message
    kind, message = result["unknown"]
    assert kind in ("DataError", "WorkerDataError")
    assert "no column 'idd' (did you mean 'id'?)" in message
    assert result["left"] == []


@pytest.mark.parametrize(
    "mode",
    ["local", pytest.param("connect", marks=pytest.mark.skipif(not HAS_CONNECT, reason=NO_CONNECT))],
)
def test_in_a_separate_program(mode):
    result, _ = run_program(PROGRAM, mode, conf={"spark.master": "local[3]"})
    check(result)


def test_on_the_executors_of_a_cluster(tmp_path):
    cluster = StandaloneCluster(tmp_path)
    try:
        conf = {"spark.executor.cores": "1", "spark.cores.max": "2", "spark.executor.memory": "512m"}
        result, _ = cluster.drive("data_run.py", "cluster", conf=conf)
    finally:
        cluster.close()
    check(result)


@pytest.fixture
def runner():
    """A factory of runners with two CPU workers and no strategy."""

    def make(num_slots=2, **options):
        return MirroredStrategyRunner(num_slots=num_slots, use_gpu=False, use_custom_strategy=True, **options)

    return make


def count(data):

    from pyspark import BarrierTaskContext

    ids = [int(v) for batch in data.to_tf("id", batch_size=64) for v in batch]
    return sorted(v for part in BarrierTaskContext.get().allGather(json.dumps(ids)) for v in json.loads(part))


def uneven(spark):
    """A DataFrame whose shards differ by several rows after Spark's shuffle."""
    return spark.range(0, 203, 1, 67)


def test_several_frames_and_the_report(spark, runner):
    def train(numbers, words, again):
        return numbers.total_rows, words.total_rows, words.columns, again.total_rows

    words = spark.createDataFrame([("a", 1), ("b", 2), ("c", None)], "word string, n int")
    made = runner()
    assert made.run(train, numbers=spark.range(10), words=words, again=words) == (10, 3, ("word", "n"), 3)
    reports = made.report.workers
    assert {name: sum(report.rows[name] for report in reports.values()) for name in ("numbers", "words", "again")} == {
        "numbers": 10,
        "words": 3,
        "again": 3,
    }
    assert all(report.spooled_bytes > 0 for report in reports.values())
    assert "data s" in str(made.report)


def test_shards_are_equalised_without_the_drivers_channel(spark, runner, monkeypatch):
    from spark_tensorflow_distributor.runtime.driver.spark import SparkGateway

    monkeypatch.setattr(SparkGateway, "channel_address", lambda self: ("127.0.0.1", ("127.0.0.9",)))
    made = runner(3)
    assert made.run(count, data=uneven(spark)) == list(range(203))
    assert {worker.rendezvous for worker in made.report.workers.values()} == {"allGather"}


def test_the_channel_may_be_lost_while_shards_are_equalised(spark, runner, monkeypatch):
    """All connections are cut when the workers report their rows, and again when they hand rows over."""
    import contextlib
    import socket

    from spark_tensorflow_distributor.runtime.driver import group, launch

    cuts = []
    receive = group.Group.receive

    def cut(self, rank, message, now):
        commands = receive(self, rank, message, now)
        if message["type"] in ("rows", "pass") and len(cuts) < 4:
            cuts.append(message["type"])
            for peer in list(channels[-1]._peers.values()):
                with contextlib.suppress(OSError):  # cut a moment ago
                    peer._socket.shutdown(socket.SHUT_RDWR)
            return []
        return commands

    channels = []
    init = launch.Launch.__init__

    def remember(self, spec, channel, *rest):
        channels.append(channel)
        init(self, spec, channel, *rest)

    monkeypatch.setattr(group.Group, "receive", cut)
    monkeypatch.setattr(launch.Launch, "__init__", remember)
    assert runner(3).run(count, data=uneven(spark)) == list(range(203))
    assert "rows" in cuts


def test_an_error_in_the_users_plan_is_raised_once_and_unchanged(spark, runner, tmp_path):
    from pyspark.errors import PythonException
    from pyspark.sql import functions as F

    folder = str(tmp_path)

    @F.udf("long")
    def fails(number):
        with open(f"{folder}/{os.getpid()}-{time.monotonic_ns()}", "w"):
            raise ValueError(f"cannot take {number}")

    with pytest.raises(PythonException, match="cannot take"):
        runner(max_restarts=3).run(count, data=spark.range(0, 2, 1, 2).select(fails("id").alias("id")))
    assert len(list(tmp_path.iterdir())) <= 2
    assert runner().run(count, data=spark.range(3)) == [0, 1, 2]


def test_invalid_frames_are_rejected_before_anything_runs(spark, runner):
    from pyspark.sql import functions as F

    with pytest.raises(ConfigurationError, match="'data' is a stream"):
        runner().run(count, data=spark.readStream.format("rate").load())
    with pytest.raises(DataError, match="column 'm' of type map"):
        runner().run(count, data=spark.range(3).select(F.create_map("id", "id").alias("m")))
    with pytest.raises(DataError, match="two columns named 'id'"):
        runner().run(count, data=spark.range(3).select("id", "id"))
    with pytest.raises(DataError, match="'data' is a list that contains Spark DataFrames"):
        runner().run(count, data=[spark.range(3)])
    with pytest.raises(ConfigurationError, match="missing a required argument: 'data'"):
        runner().run(count, datum=spark.range(3))


def test_a_failure_while_rows_still_arrive(spark, runner):
    """The error is raised promptly although Spark takes a minute to deliver the rows."""

    def slow(batches):
        import time

        for batch in batches:
            time.sleep(3)
            yield batch

    frame = spark.range(0, 20, 1, 1).mapInArrow(slow, "id long")
    started = time.monotonic()

    def train(data):
        raise ValueError("after the rows")

    with pytest.raises(TrainingFailedError, match="after the rows"):
        runner().run(train, data=frame)
    assert time.monotonic() - started < 60
    assert runner().run(count, data=spark.range(3)) == [0, 1, 2]


def test_no_timeout_includes_the_computation_of_the_frame(spark, runner):
    def slow(batches):
        import time

        for batch in batches:
            time.sleep(18)
            yield batch

    frame = spark.range(0, 9, 1, 1).mapInArrow(slow, "id long")
    assert runner(start_timeout=15).run(count, data=frame) == list(range(9))


def test_interrupting_while_the_frame_is_computed(spark, runner):
    def endless(batches):
        import time

        time.sleep(100)
        yield from batches

    frame = spark.range(0, 9, 1, 1).mapInArrow(endless, "id long")
    thread = threading.Timer(3, lambda: spark.sparkContext.cancelAllJobs())
    thread.start()
    started = time.monotonic()
    with pytest.raises(Exception, match="cancel"):
        runner(max_restarts=2).run(count, data=frame)
    thread.join()
    assert time.monotonic() - started < 30


FULL_DISK_PROGRAM = """
import sys
from pyspark.sql import SparkSession, functions as F
from spark_tensorflow_distributor import MirroredStrategyRunner
builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
spark = builder.config("spark.local.dir", sys.argv[1]).getOrCreate()
runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, use_custom_strategy=True)
# These rows fit into Spark's own shuffle files, which are compressed, but not into ours.
wide = spark.range(200_000).select("id", *(F.lit(float(n)).alias(f"c{n}") for n in range(24)))
for frame in (wide, wide.where("id >= 0")):
    try:
        runner.run(lambda data: None, data=frame)
    except Exception as error:
        print("RESULT", type(error).__name__, str(error), flush=True)
print("RESULT", runner.run(lambda data: data.total_rows, data=wide.limit(5)))
"""


def test_a_full_disk(tmp_path):
    """On a disk of 24 MiB, a run fails before rows arrive if Spark knows their number, else when the disk is full."""
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(tmp_path)]).returncode:
        pytest.skip("needs to mount a file system, as root")
    try:
        command = [sys.executable, "-c", FULL_DISK_PROGRAM, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    finally:
        assert wait_until(lambda: not subprocess.run(["umount", str(tmp_path)], capture_output=True).returncode, 20)
    known, unknown, after = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert known.startswith("RESULT DataError The rows need at least 38.1 MiB on the disk of"), known
    assert "2 of 2 workers share it" in known
    assert "free. Free space there, or point spark.local.dir" in known
    assert unknown.startswith("RESULT DataError The disk of"), unknown
    assert "is full (No space left on device): this worker had written" in unknown
    assert str(tmp_path) in known
    assert str(tmp_path) in unknown
    assert after == "RESULT 5"
