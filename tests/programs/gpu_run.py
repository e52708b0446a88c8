"""A driver that runs on stub GPUs, and prints what each rank's worker saw. argv: settings for all sessions.

It reads a request per line from stdin, as JSON: ``conf``, the settings of the session, which the next request keeps if
it has the same; ``num_slots``; and optionally ``runs``; ``sees``, whether TensorFlow sees GPUs; ``gpus``, the GPUs per
task of a resource profile; ``executors``, whether the profile also requests executors; and ``local``.
"""

import json
import os
import sys

from driver import print_result, session
from pyspark import SparkContext
from pyspark.resource import ExecutorResourceRequests, ResourceProfileBuilder, TaskResourceRequests

from helpers import STUBS, WORKER_PATH
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


def profile(gpus, executors=False):
    builder = ResourceProfileBuilder().require(TaskResourceRequests().cpus(1).resource("gpu", gpus))
    return builder.require(ExecutorResourceRequests().cores(1)).build if executors else builder.build


def run_on_cluster(spark, num_slots, runs=1, sees=True, gpus=None, executors=False):
    env = {"PYTHONPATH": WORKER_PATH, "TF_USE_LEGACY_KERAS": "1", "STUB_TF_SEES_GPUS": str(int(sees))}
    asked = None if gpus is None else profile(gpus, executors)
    runner = MirroredStrategyRunner(num_slots=num_slots, spark=spark, env=env, resource_profile=asked)
    found = [sorted(runner.run(look), key=lambda each: each["rank"]) for _ in range(runs)]
    return {"tasks": runner.get_num_tasks(), "runs": found}


def run_locally(spark, num_slots):
    """Use the driver's own GPUs, as Spark's discovery script lists them."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "4,5,6,7"
    before = dict(os.environ)
    sys.path.insert(0, STUBS)
    try:
        runner = MirroredStrategyRunner(num_slots=num_slots, local_mode=True, spark=spark)
        return {"visible": runner.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])}
    finally:
        assert dict(os.environ) == before
        sys.path.remove(STUBS)
        del os.environ["CUDA_VISIBLE_DEVICES"]


# Otherwise the settings of the first session would be passed to the JVM, where all sessions have them.
SparkContext._ensure_initialized()
spark, conf = None, None
for line in sys.stdin:
    request = json.loads(line)
    wanted = request.pop("conf")
    if wanted != conf:
        if spark is not None:
            spark.stop()
        spark, conf = session(wanted), wanted
    call = run_locally if request.pop("local", False) else run_on_cluster
    try:
        print_result(call(spark, **request))
    except DistributorError as error:
        print_result({"error": type(error).__name__, "message": str(error)})
if spark is not None:
    spark.stop()
