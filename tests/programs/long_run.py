"""A run that lasts until it is interrupted. argv: settings, folder for the workers' pids, optionally a log_dir."""

import os
import sys
import time

from driver import print_result, session

from helpers import WORKER_PATH
from spark_tensorflow_distributor import MirroredStrategyRunner, get_context


def wait(folder):
    import subprocess

    context = get_context()
    if context.log_dir:
        with open(f"{context.log_dir}/rank{context.rank}", "wb") as file:
            file.write(b"x" * 3_000_000)
    child = subprocess.Popen(["sleep", "300"])  # in the trainer's process group
    for pid in (os.getpid(), os.getppid(), child.pid):
        open(f"{folder}/{pid}", "w").close()
    time.sleep(300)


spark = session()
env = {"PYTHONPATH": WORKER_PATH, "TF_USE_LEGACY_KERAS": "1"}
runner = MirroredStrategyRunner(num_slots=2, spark=spark, use_gpu=False, env=env, log_dir=(sys.argv[3:] or [None])[0])
started = time.time()
try:
    runner.run(wait, folder=sys.argv[2])
except KeyboardInterrupt:
    print_result({"interrupted": runner.report.interrupted, "rows": spark.range(10).count()})
except Exception as error:
    print_result({"error": type(error).__name__, "message": str(error), "rows": spark.range(10).count()})
print("SECONDS", time.time() - started)
spark.stop()
