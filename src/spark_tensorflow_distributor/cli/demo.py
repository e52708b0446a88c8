"""Prepare rows with Spark, train on two workers of this machine, score the rest, and save the report as a page."""

import os
import time
from argparse import Namespace
from typing import Any

# The demo is a user's program, so it imports public names only.
from spark_tensorflow_distributor import ConfigurationError, MirroredStrategyRunner, predict

from .spark import session

FEATURES = ["distance", "hour", "wind_speed"]
_ROWS = 60_000
_BARS = "▁▂▃▄▅▆▇█"


def demo(options: Namespace) -> int:
    """Run the whole workflow on synthetic flights."""
    if not options.report.endswith((".html", ".htm")):
        raise ConfigurationError(f"--report is {options.report!r}; it must be the name of an HTML page.")
    began = time.monotonic()
    settings = Namespace(
        master="local[2]", remote=None, conf=["spark.ui.enabled=false", "spark.sql.shuffle.partitions=2"]
    )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    with session(settings, 2, is_quiet=True) as spark:
        print(f"1. Spark prepares {_ROWS:,} flights.")
        train_df, valid_df, test_df = (frame.cache() for frame in _flights(spark).randomSplit([0.8, 0.1, 0.1], seed=1))
        print(f"   {train_df.count():,} to train, {valid_df.count():,} to validate, {test_df.count():,} to score.\n")

        print("2. Keras trains on two workers, straight from the DataFrame.")
        runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark)
        model = runner.run(train, train_data=train_df, validation_data=valid_df)
        print(f"\n{curve(runner.report.history)}\n" if runner.report else "")

        print("3. The model scores the flights that it has not seen, as a column of their DataFrame.\n")
        scored = predict(test_df, model, FEATURES, stack=True).cache()
        scored.orderBy("prediction", ascending=False).show(3, truncate=False)
        right = scored.where("(prediction > 0.5) = (late = 1)").count() / scored.count()
        late = test_df.where("late = 1").count() / test_df.count()
        print(f"   {right:.1%} of them are predicted correctly; always saying 'on time' would be {1 - late:.1%}.\n")

        assert runner.report is not None  # run() has set it
        print(f"4. The report of the run.\n\n{runner.report}\n")
        runner.report.to_html(options.report)
    print(f"This took {time.monotonic() - began:.0f} s. What to look at next:")
    print(f"  {options.report}: curves, a timeline of both workers, and what limits the run")
    print("  python -m spark_tensorflow_distributor doctor: would a run start on your cluster?")
    print("  python -m spark_tensorflow_distributor run --num-slots 2 --cpu train.py: your own script")
    return 0


def _flights(spark: Any) -> Any:
    from pyspark.sql import functions as F

    flights = spark.range(_ROWS).select(
        (F.rand(1) * 2500).alias("distance"),
        F.floor(F.rand(2) * 24).alias("hour"),
        (F.rand(3) * 40).alias("wind_speed"),
    )
    return flights.withColumn("late", (F.col("hour") + F.col("wind_speed") + 5 * F.randn(4) > 42).cast("float"))


def train(train_data: Any, validation_data: Any) -> Any:
    """Train on this worker's rows with an ordinary Keras function."""
    import tensorflow as tf

    features = ["distance", "hour", "wind_speed"]
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Input((len(features),)),
            train_data.adapt(tf.keras.layers.Normalization(), features),
            tf.keras.layers.Dense(64, activation="relu"),
            tf.keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
    model.fit(
        train_data.to_tf(features, "late", batch_size=256, stack=True),
        validation_data=validation_data.to_tf(features, "late", batch_size=2048, stack=True),
        epochs=6,
    )
    return model


def curve(history: Any) -> str:
    """Return the losses of all epochs as bars, each with its first and last value."""
    lines = []
    for name in ("loss", "val_loss"):
        values = [entry["logs"][name] for entry in history if name in entry["logs"]]
        if values:
            low, span = min(values), (max(values) - min(values)) or 1.0
            bars = "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] for value in values)
            lines.append(f"   {name:9} {bars}  {values[0]:.3f} -> {values[-1]:.3f}")
    return "\n".join(lines)
