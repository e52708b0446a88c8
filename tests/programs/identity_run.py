"""Print the identity of a training, which names its checkpoint folder. argv: settings, rows."""

import sys

from pyspark.ml.feature import VectorAssembler
from pyspark.sql import functions as F

from spark_tensorflow_distributor.ml import KerasRegressor
from spark_tensorflow_distributor.ml.folders import identity_of


def build(num_features, units):
    return Factory(units).model(num_features)


class Factory:
    names = frozenset({"first", "second", "third"})

    def __init__(self, units):
        self.units = units

    def model(self, num_features):
        return build(num_features, self.units)


def identity(spark, path, limit=90, **params):
    rows = VectorAssembler(inputCols=["a", "id"], outputCol="features").transform(spark.read.parquet(path))
    rows = rows.where(F.col("id") < limit).withColumn("label", F.col("a") * 2)
    return identity_of(KerasRegressor(**{"modelFn": build, "modelParams": {"units": 3}, **params}), rows)


if __name__ == "__main__":
    from driver import print_result, session

    print_result(identity(session(), sys.argv[2], numSlots=4))
