"""CrossValidator and TrainValidationSplit: parallel trainings on parts of the cluster."""

import sys
import threading

import pytest
from pyspark import cloudpickle
from pyspark.ml import Pipeline
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.tuning import (
    CrossValidator,
    CrossValidatorModel,
    ParamGridBuilder,
    TrainValidationSplit,
    TrainValidationSplitModel,
)
from pyspark.sql import functions as F

from clusters import run_program
from spark_tensorflow_distributor import RunCallback
from spark_tensorflow_distributor.ml import KerasRegressor

# Spark leaves the threads of its pool to garbage collection.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed running multiprocessing pool:ResourceWarning")


@pytest.fixture(scope="module", autouse=True)
def functions_of_this_file():
    """Let the workers, which cannot import this file, receive its functions by value."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


def line(num_features, rate):
    import keras

    model = keras.Sequential([keras.Input((num_features,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(rate), "mse")
    return model


class Overlap(RunCallback):
    """Counts how many trainings run at the same time."""

    lock = threading.Lock()
    running = most = total = 0

    def on_attempt_begin(self, attempt):
        with self.lock:
            Overlap.running += 1
            Overlap.total += 1
            Overlap.most = max(Overlap.most, Overlap.running)

    def on_attempt_end(self, report):
        with self.lock:
            Overlap.running -= 1


@pytest.fixture(scope="module")
def rows(spark):
    rows = spark.range(0, 300, 1, 1).select((F.rand(1) - 0.5).alias("x"), (F.rand(2) - 0.5).alias("z"))
    return rows.withColumn("label", 2 * F.col("x") - F.col("z")).cache()


def test_trainings_share_the_cluster_and_wait_for_each_other(rows, tmp_path):
    # Two trainings take two slots each, which are all; the third must wait, if need be longer than its start_timeout.
    regressor = KerasRegressor(modelFn=line, epochs=2, batchSize=16, numSlots=2, runCallbacks=[Overlap()])
    pipeline = Pipeline(stages=[VectorAssembler(inputCols=["x", "z"], outputCol="features"), regressor])
    grid = ParamGridBuilder().addGrid(regressor.modelParams, [{"rate": rate} for rate in (1e-9, 0.1, 1e-8)]).build()
    evaluator = RegressionEvaluator(metricName="mae")
    validator = CrossValidator(
        estimator=pipeline, estimatorParamMaps=grid, evaluator=evaluator, numFolds=2, parallelism=3, seed=7
    )
    model = validator.fit(rows)
    assert (Overlap.total, Overlap.running, Overlap.most) == (7, 0, 2)
    assert min(range(3), key=model.avgMetrics.__getitem__) == 1
    model.write().overwrite().save(str(tmp_path / "cv"))
    again = CrossValidatorModel.load(str(tmp_path / "cv"))
    assert again.avgMetrics == model.avgMetrics
    assert [list(each.values()) for each in again.getEstimatorParamMaps()] == [list(each.values()) for each in grid]
    wanted = evaluator.evaluate(model.transform(rows))
    assert evaluator.evaluate(again.transform(rows)) == pytest.approx(wanted)


def test_a_split_with_checkpoints_of_their_own(rows, tmp_path):
    features = VectorAssembler(inputCols=["x", "z"], outputCol="features").transform(rows)
    regressor = KerasRegressor(
        modelFn=line, epochs=1, batchSize=16, numSlots=2, checkpointDir=str(tmp_path / "checkpoints"),
        logDir=str(tmp_path / "logs"),
    )  # fmt: skip
    grid = ParamGridBuilder().addGrid(regressor.modelParams, [{"rate": 0.1}, {"rate": 1e-9}]).build()
    split = TrainValidationSplit(
        estimator=regressor, estimatorParamMaps=grid, evaluator=RegressionEvaluator(metricName="mae"), parallelism=2,
        collectSubModels=True, seed=7,
    )  # fmt: skip
    model = split.fit(features)
    assert model.validationMetrics[0] < model.validationMetrics[1]
    # Neither training resumed from the other's checkpoint, which would have skipped its only epoch.
    assert all(len(each.history["loss"]) == 1 for each in model.subModels)
    assert len(list((tmp_path / "logs").iterdir())) == 3
    model.save(str(tmp_path / "split"))
    again = TrainValidationSplitModel.load(str(tmp_path / "split"))
    assert len(again.subModels) == 2

    few = features.withColumn("id", F.monotonically_increasing_id()).limit(20).cache()
    few.write.parquet(str(tmp_path / "rows"))
    conf = {"spark.master": "local[1]"}
    found, _ = run_program("ml_load_run.py", str(tmp_path / "split"), str(tmp_path / "rows"), conf=conf)
    assert found == pytest.approx([row.prediction for row in model.transform(few).orderBy("id").collect()], rel=1e-5)
