"""Measures an estimator in a pyspark.ml pipeline: ours, elephas, and the same training written by hand.

    .venv/bin/python benchmarks/estimator.py --rounds 3

Each round starts one driver process per system, in turn, on local[2]. Each process caches rows of a vector of 20
numbers and a label of two classes, and runs a small Spark job. It then measures the ``first`` fit on two workers, which
includes the import of TensorFlow; further ones (``fit``); ``transform`` of all rows to Spark's noop sink; and the area
under the ROC curve on other rows (``auc``). The model is 20-64-64-1, with a global batch of 1,024.

``ours``: KerasClassifier. ``by hand``: ``runner.run`` with a training function, ``predict``, and the columns of
pyspark.ml. ``elephas``: ElephasEstimator 7.3.0 in synchronous mode, which averages the workers' weights after each
epoch, with half the batch on each worker. It is installed from PyPI into a separate directory, and runs on the same
Python, PySpark and TensorFlow.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from drivers import HERE, measure, print_result

SYSTEMS = ("ours", "by hand", "elephas")
ELEPHAS = HERE / ".peers" / "elephas"
# What elephas imports besides PySpark and TensorFlow.
PACKAGES = ("elephas==7.3.0", "flask", "werkzeug", "jinja2", "markupsafe", "itsdangerous", "click", "blinker")
WIDTH, BATCH = 20, 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2, help="fits after the first, per round")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--as", dest="role", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        drive(options.role, options)
        return
    if "elephas" in options.systems and not ELEPHAS.exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(ELEPHAS)]
        subprocess.run([*command, *PACKAGES], check=True)
    measured = {system: [] for system in options.systems}
    arguments = ("--rows", options.rows, "--epochs", options.epochs, "--repeats", options.repeats)
    for number in range(options.rounds):
        for system in options.systems:
            path = os.pathsep.join(map(str, [HERE.parent / "src", *([ELEPHAS] if system == "elephas" else [])]))
            result = measure(__file__, system, *arguments, TF_CPP_MIN_LOG_LEVEL="2", PYTHONPATH=path)
            measured[system].append(result)
            print(f"# round {number + 1} {system}: {json.dumps(result)}", file=sys.stderr)
    print(f"{options.rows:,} rows, {options.epochs} epochs; median (minimum to maximum), ratio to ours")
    for name in ("first", "fit", "transform", "auc"):
        reference = median(measured.get("ours", []), name)
        for system, results in measured.items():
            values = [value for result in results for value in result[name]]
            ratio = "" if not reference or name == "auc" else f"  {median(results, name) / reference:5.2f}x"
            spread = f"({min(values):.3f} to {max(values):.3f})"
            print(f"  {name:9} {system:8} {statistics.median(values):8.3f} {spread}{ratio}")


def median(results, name):
    values = [value for result in results for value in result[name]]
    return statistics.median(values) if values else None


def drive(system, options):
    """Run the driver process of one system."""
    from pyspark.ml.evaluation import BinaryClassificationEvaluator
    from pyspark.ml.feature import VectorAssembler
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as F

    builder = SparkSession.builder.master("local[2]").config("spark.driver.memory", "3g")
    spark = builder.config("spark.ui.enabled", "false").getOrCreate()
    names = [f"c{i}" for i in range(WIDTH)]
    numbers = spark.range(0, 2 * options.rows, 1, 2).select(
        "id", *(F.randn(i).cast("float").alias(name) for i, name in enumerate(names))
    )
    signal = F.col("c0") * F.col("c1") + F.sin(2 * F.col("c2")) + F.randn(99)
    labelled = numbers.withColumn("label", (signal > 0).cast("double"))
    rows = VectorAssembler(inputCols=names, outputCol="features").transform(labelled)
    train = rows.where("id % 2 = 0").select("features", "label").cache()
    test = rows.where("id % 2 = 1").select("features", "label").cache()
    train.count(), test.count()
    spark.range(10).mapInPandas(lambda frames: frames, "id long").collect()  # starts the Python workers
    fit, transform = {"ours": ours, "by hand": by_hand, "elephas": elephas}[system](spark, options.epochs)
    result = {"first": [], "fit": [], "transform": [], "auc": []}
    for number in range(1 + options.repeats):
        started = time.perf_counter()
        model = fit(train)
        result["fit" if number else "first"].append(round(time.perf_counter() - started, 3))
    for _ in range(1 + options.repeats):
        started = time.perf_counter()
        transform(model, test).write.format("noop").mode("overwrite").save()
        result["transform"].append(round(time.perf_counter() - started, 3))
    column = "prediction" if system == "elephas" else "rawPrediction"
    scored = transform(model, test)
    if system == "elephas":  # an array of one number
        scored = scored.withColumn("prediction", F.col("prediction")[0].cast("double"))
    evaluator = BinaryClassificationEvaluator(rawPredictionCol=column)
    result["auc"].append(round(evaluator.evaluate(scored), 4))
    print_result(result)
    spark.stop()


def build(num_features):
    import keras

    layers = [keras.layers.Dense(64, activation="relu") for _ in range(2)]
    model = keras.Sequential([keras.Input((num_features,)), *layers, keras.layers.Dense(1, activation="sigmoid")])
    model.compile(keras.optimizers.Adam(0.003), "binary_crossentropy")
    return model


def ours(spark, epochs):
    from spark_tensorflow_distributor.ml import KerasClassifier

    estimator = KerasClassifier(modelFn=build, epochs=epochs, batchSize=BATCH, numSlots=2)
    return estimator.fit, lambda model, df: model.transform(df)


def by_hand(spark, epochs):
    from pyspark.ml.functions import array_to_vector
    from pyspark.sql import functions as F

    from spark_tensorflow_distributor import MirroredStrategyRunner, predict

    def train(train_data, epochs):
        model = build(WIDTH)
        model.fit(train_data.to_tf("features", "label", batch_size=BATCH), epochs=epochs)
        return model

    def fit(df):
        runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, log_to_driver=False, progress=False)
        return runner.run(train, train_data=df, epochs=epochs)

    def transform(model, df):
        scored = predict(df, model, "features", output_column="p")
        positive = F.col("p").cast("double")
        both = array_to_vector(F.array(1 - positive, positive))
        return scored.select(
            *df.columns,
            both.alias("rawPrediction"),
            both.alias("probability"),
            (positive > 0.5).cast("double").alias("prediction"),
        )

    return fit, transform


def elephas(spark, epochs):
    import keras
    from elephas.ml_model import ElephasEstimator

    model = build(WIDTH)
    estimator = ElephasEstimator(
        keras_model_config=model.to_json(),
        optimizer_config=keras.optimizers.serialize(model.optimizer),
        loss="binary_crossentropy",
        metrics=[],
        mode="synchronous",
        categorical=False,
        nb_classes=2,
        num_workers=2,
        epochs=epochs,
        batch_size=BATCH // 2,
        verbose=0,
        featuresCol="features",
        labelCol="label",
    )
    return estimator.fit, lambda model, df: model.transform(df)


if __name__ == "__main__":
    main()
