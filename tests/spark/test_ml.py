"""What estimators compute in Spark: names of checkpoint folders, probabilities and numbers of classes."""

from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import functions as F

from clusters import run_program
from spark_tensorflow_distributor import DataError
from spark_tensorflow_distributor.data.frames import plan_text
from spark_tensorflow_distributor.ml.columns import count_classes, known_columns, probabilities_of


def test_another_driver_finds_the_folder_of_the_same_training(spark, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "programs")
    from identity_run import identity

    path = str(tmp_path / "rows")
    spark.range(100).select("id", (F.col("id") / 3).alias("a")).write.parquet(path)
    here = identity(spark, path)
    there, out = run_program("identity_run.py", path, conf={"spark.master": "local[1]"})
    assert there == here, out

    other = str(tmp_path / "other")
    spark.read.parquet(path).write.parquet(other)
    found = [
        here, identity(spark, path, limit=80), identity(spark, other), identity(spark, path, epochs=2),
        identity(spark, path, modelParams={"units": 4}), identity(spark, path, modelFn=lambda units: None),
    ]  # fmt: skip
    assert len(set(found)) == len(found)


def test_the_text_of_a_plan_has_no_numbers_of_the_session(spark):
    def plan(limit):
        rows = spark.range(10).select((F.col("id") + 1).alias("x"))
        return plan_text(
            rows.join(rows.withColumnRenamed("x", "y").where(F.col("y") < limit), F.col("x") == F.col("y"))
        )

    assert plan(5) == plan(5)
    assert plan(5) != plan(6)


def test_softmax_costs_time_that_is_linear_in_the_classes(spark):
    classes = 3000  # in cubic time, this would take minutes
    logits = F.transform(F.sequence(F.lit(0), F.lit(classes - 1)), lambda each: each % 7 + F.col("id") * 500.0)
    rows = spark.range(0, 3, 1, 1).select(probabilities_of(logits, None, are_logits=True).alias("p")).collect()
    powers = np.exp(np.arange(classes) % 7)
    for row in rows:
        np.testing.assert_allclose(row.p, powers / powers.sum(), rtol=1e-12)


@pytest.mark.parametrize("wrong", ["NaN", "Infinity"])
def test_labels_that_are_not_finite_are_refused_when_classes_are_counted(spark, wrong):
    df = spark.range(5).select(F.col("id").cast("double").alias("label"))
    label = known_columns(df, {"labelCol": "label"})["label"]
    assert count_classes(df, label) == 5
    assert count_classes(df.where("label = 0"), label) == 2
    with pytest.raises(DataError, match="contains -1"):
        count_classes(df.select((-1 - F.col("label")).alias("label")), label)
    assert count_classes(df.where("label > 9"), label) is None
    with pytest.raises(DataError, match=r"The label column 'label' contains (nan|inf); a classifier's labels"):
        count_classes(
            df.withColumn("label", F.when(F.col("label") > 2, F.lit(wrong).cast("double")).otherwise(1.0)), label
        )
