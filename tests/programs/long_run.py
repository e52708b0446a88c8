"""A run that lasts until it is interrupted. argv: settings, folder into which the workers write their pids."""

import os
import sys
import time

from driver import print_result, session

from helpers import WORKER_PATH
from spark_tensorflow_distributor import MirroredStrategyRunner


def wait(folder):
    import subprocess

    child = subprocess.Popen(["sleep", "300"])  # in the trainer's process group
    for pid in (os.getpid(), os.getppid(), child.pid):
        open(f"{folder}/{pid}", "w").close()
    time.sleep(300)


spark = session()
env = {"PYTHONPATH": WORKER_PATH, "TF_USE_LEGACY_KERAS": "1"}
runner = MirroredStrategyRunner(num_slots=2, spark=spark, use_gpu=False, env=env)
started = time.time()
try:
    runner.run(wait, folder=sys.argv[2])
except KeyboardInterrupt:
    print_result({"interrupted": True, "rows": spark.range(10).count()})
except Exception as error:
    print_result({"error": type(error).__name__, "message": str(error), "rows": spark.range(10).count()})
print("SECONDS", time.time() - started)
spark.stop()
