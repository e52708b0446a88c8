"""Apply a CrossValidatorModel and save it again, without the functions that trained it. argv: settings, model, rows."""

import sys

from driver import print_result, session
from pyspark.ml.tuning import CrossValidatorModel

spark = session()
model = CrossValidatorModel.load(sys.argv[2])
model.write().overwrite().save(f"{sys.argv[2]}-again")
rows = CrossValidatorModel.load(f"{sys.argv[2]}-again").transform(spark.read.parquet(sys.argv[3])).orderBy("id")
print_result([row.prediction for row in rows.collect()])
spark.stop()
