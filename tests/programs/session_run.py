"""Runs whose session is stopped, and DataFrames without rows. argv: settings, an empty folder."""

import os
import sys
import threading
import time

from driver import print_result, session

from helpers import WORKER_PATH, wait_until
from spark_tensorflow_distributor import DistributorError, MirroredStrategyRunner

folder = sys.argv[2]
env = {"PYTHONPATH": WORKER_PATH, "TF_USE_LEGACY_KERAS": "1"}


def wait(folder):
    open(os.path.join(folder, str(os.getpid())), "w").close()
    time.sleep(120)


def error_of(runner, function, **kwargs):
    try:
        return runner.run(function, **kwargs)
    except DistributorError as error:
        return [type(error).__name__, str(error)]


result = {}
spark = session()
runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, env=env, max_restarts=1)
explicit = MirroredStrategyRunner(num_slots=2, use_gpu=False, env=env, spark=spark)
result["first"] = runner.run(lambda: 1)
numbers = spark.range(10)
result["empty"] = error_of(runner, lambda **frames: 1, train_data=numbers.limit(0), more=numbers.limit(0))


def stop():
    wait_until(lambda: len(os.listdir(folder)) == 2, 60)
    spark.stop()


thread = threading.Thread(target=stop)
thread.start()
result["during"] = error_of(runner, wait, folder=folder)
thread.join()
result["after"] = error_of(runner, lambda: 1)
result["explicit"] = error_of(explicit, lambda: 1)
spark = session()
result["old_frame"] = error_of(runner, lambda data: 1, data=numbers)
result["again"] = runner.run(lambda: 2)
print_result(result)
spark.stop()
