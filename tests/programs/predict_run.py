"""Predictions where the executors are other processes. argv: settings, a saved model of three floats.

Without a master in the settings it goes over Spark Connect.
"""

import json
import sys

from driver import print_result, session
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from spark_tensorflow_distributor import DataError
from spark_tensorflow_distributor.inference.predict import predict, predict_udf

if "spark.master" in json.loads(sys.argv[1]):
    spark = session()
else:
    spark = SparkSession.builder.remote("local[2]").getOrCreate()
columns = ["a", "b", "c"]
df = spark.range(0, 20, 1, 2).select("id", *(F.col("id").cast("float").alias(name) for name in columns))
path = sys.argv[2]
result = {"predict": [row.prediction for row in predict(df, path, columns, stack=True).collect()]}
spark.udf.register("score", predict_udf(path, stack=True))
df.createOrReplaceTempView("rows")
result["sql"] = [row.p for row in spark.sql("SELECT score(a, b, c) AS p FROM rows ORDER BY id").collect()]
result["tensorflow"] = "tensorflow" in sys.modules
try:
    predict(df, path, ["a", "x"])
except DataError as error:
    result["error"] = f"{type(error).__name__}: {error}"
print_result(result)
spark.stop()
