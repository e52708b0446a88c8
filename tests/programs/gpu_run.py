"""Runs on stub GPUs, and prints what each rank's worker saw.

argv: settings, num_slots, runs, whether TensorFlow sees GPUs, the GPUs per task of a resource profile.
"""

import os
import sys

from driver import print_result, session

from helpers import WORKER_PATH
from spark_tensorflow_distributor import DistributorError, MirroredStrategyRunner


def look():
    import json

    import tensorflow
    from pyspark import BarrierTaskContext

    context = BarrierTaskContext.get()
    seen = {
        "visible": os.environ["CUDA_VISIBLE_DEVICES"],
        "addresses": context.resources()["gpu"].addresses,
        "rank": json.loads(os.environ["TF_CONFIG"])["task"]["index"],
        "worker": json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"],
        "executor": os.getppid(),
        "asked": dict(tensorflow.asked.items()),
    }
    return [json.loads(text) for text in context.allGather(json.dumps(seen))]


spark = session()
sees = sys.argv[4] if len(sys.argv) > 4 else "1"
env = {"PYTHONPATH": WORKER_PATH, "TF_USE_LEGACY_KERAS": "1", "STUB_TF_SEES_GPUS": sees}
profile = None
if len(sys.argv) > 5:
    from pyspark.resource import ExecutorResourceRequests, ResourceProfileBuilder, TaskResourceRequests

    builder = ResourceProfileBuilder().require(TaskResourceRequests().cpus(1).resource("gpu", float(sys.argv[5])))
    if len(sys.argv) > 6:
        builder = builder.require(ExecutorResourceRequests().cores(1))
    profile = builder.build
try:
    runner = MirroredStrategyRunner(num_slots=int(sys.argv[2]), spark=spark, env=env, resource_profile=profile)
    runs = [sorted(runner.run(look), key=lambda each: each["rank"]) for _ in range(int(sys.argv[3]))]
    print_result({"tasks": runner.get_num_tasks(), "runs": runs})
except DistributorError as error:
    print_result({"error": type(error).__name__, "message": str(error)})
spark.stop()
