"""Runs over Spark Connect with the stand-in for TensorFlow. argv: settings, folder for pids."""

import json
import os
import sys
import tempfile
import threading
import time

from driver import print_result
from pyspark.accumulators import INT_ACCUMULATOR_PARAM, Accumulator
from pyspark.sql import SparkSession

from helpers import WORKER_PATH, OwnError, is_running, wait_until
from spark_tensorflow_distributor import (
    ClusterError,
    MirroredStrategyRunner,
    SerializationError,
    TrainingFailedError,
    get_context,
)

builder = SparkSession.builder.remote("local[3]")
for key, value in json.loads(sys.argv[1]).items():
    builder = builder.config(key, value)
spark = builder.getOrCreate()
env = {"PYTHONPATH": WORKER_PATH, "TF_USE_LEGACY_KERAS": "1"}
folder = sys.argv[2]
os.mkdir(f"{folder}-modules")
with open(f"{folder}-modules/own_module.py", "w") as file:
    file.write("value = 7")


def runner(num_slots=2, **options):
    return MirroredStrategyRunner(num_slots=num_slots, use_gpu=False, env=env, **options)


def train(x):
    from pyspark import BarrierTaskContext

    print("a line of a worker")
    context = get_context()
    if context.log_dir:
        with open(f"{context.log_dir}/rank{context.rank}", "w") as file:
            file.write("x" * 1_000_000)
    return x + len(BarrierTaskContext.get().allGather(""))


def fail():
    raise OwnError(5, "over connect")


def use_own_module():
    import own_module

    return own_module.value


def wait(folder):
    open(f"{folder}/{os.getpid()}", "w").close()
    time.sleep(300)


result = {}
logs = tempfile.mkdtemp()
made = runner(log_dir=logs)
result["value"] = made.run(train, x=40)
result["rendezvous"] = sorted({worker.rendezvous for worker in made.report.workers.values()})
result["logs"] = {name: os.path.getsize(f"{logs}/{name}") for name in os.listdir(logs)}
result["large"] = len(runner().run(lambda: b"x" * (200 << 20)))
try:
    runner().run(fail)
except TrainingFailedError as error:
    result["failure"] = [type(error.__cause__).__name__, error.root_cause.message]
result["module"] = runner(py_modules=[f"{folder}-modules/own_module.py"]).run(use_own_module)
counted = Accumulator(1, 0, INT_ACCUMULATOR_PARAM)
try:
    runner().run(lambda: counted.add(1))
except SerializationError as error:
    result["accumulator"] = str(error)
rows = spark.range(10)
try:
    runner().run(lambda: rows.count())
except SerializationError as error:
    result["dataframe"] = str(error)
try:
    _ = runner().sc
except Exception as error:
    result["sc"] = type(error).__name__
try:
    MirroredStrategyRunner(num_slots=2, env=env)
except ClusterError as error:
    result["gpu"] = type(error).__name__


def interrupt():
    wait_until(lambda: len(os.listdir(folder)) == 2, 60)
    spark.interruptAll()


thread = threading.Thread(target=interrupt)
thread.start()
try:
    runner().run(wait, folder=folder)
except TrainingFailedError as error:
    result["interrupted"] = str(error)
thread.join()
result["gone"] = wait_until(lambda: not any(is_running(int(pid)) for pid in os.listdir(folder)))
result["rows"] = spark.range(10).count()
started = time.monotonic()
try:
    runner(4, start_timeout=3).run(train, x=1)
except Exception as error:
    result["too_few"] = [type(error).__name__, str(error), time.monotonic() - started]
print_result(result)
spark.stop()
