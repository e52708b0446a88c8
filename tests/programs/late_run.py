"""Runs on a cluster whose workers start later. argv: settings, start_timeout."""

import logging
import sys

from driver import print_result, session

from helpers import WORKER_PATH
from spark_tensorflow_distributor import DistributorError, MirroredStrategyRunner

logging.basicConfig()
spark = session()
env = {"PYTHONPATH": WORKER_PATH, "TF_USE_LEGACY_KERAS": "1"}
runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, env=env, start_timeout=float(sys.argv[2]))
print("STARTED", flush=True)
try:
    print_result({"value": runner.run(lambda: 5)})
except DistributorError as error:
    print_result({"error": type(error).__name__, "message": str(error)})
spark.stop()
