"""local_mode on the driver's own GPUs, as Spark's discovery script lists them. argv: settings, num_slots."""

import os
import sys

from driver import print_result, session

from helpers import STUBS
from spark_tensorflow_distributor import DistributorError, MirroredStrategyRunner

sys.path.insert(0, STUBS)
spark = session()
os.environ["CUDA_VISIBLE_DEVICES"] = "4,5,6,7"
before = dict(os.environ)
try:
    runner = MirroredStrategyRunner(num_slots=int(sys.argv[2]), local_mode=True, spark=spark)
    visible = runner.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
    print_result({"visible": visible, "restored": dict(os.environ) == before})
except DistributorError as error:
    print_result({"error": type(error).__name__, "message": str(error), "restored": dict(os.environ) == before})
spark.stop()
