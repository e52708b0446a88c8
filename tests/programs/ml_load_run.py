"""Load a TrainValidationSplitModel, save it again and apply it, without the functions that trained it.

argv: settings, model, rows.
"""

import sys

from driver import print_result, session
from pyspark.ml.tuning import TrainValidationSplitModel

spark = session()
model = TrainValidationSplitModel.load(sys.argv[2])
model.write().overwrite().save(f"{sys.argv[2]}-again")
rows = TrainValidationSplitModel.load(f"{sys.argv[2]}-again").transform(spark.read.parquet(sys.argv[3])).orderBy("id")
print_result([row.prediction for row in rows.select("prediction").collect()])
spark.stop()
