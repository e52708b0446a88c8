"""Measures batch inference with ours and with PySpark: rows per second, on local[2].

    .venv/bin/python benchmarks/predict.py --rounds 3

Each round starts one driver process per system and model, in turn, so that a change in the machine's speed
affects all of them. Each process starts a Spark session, caches a DataFrame of two partitions, and runs one warm-up job
without TensorFlow; then the first prediction of all rows (``cold``, which includes importing TensorFlow and loading the
model in both Python workers) and repeated ones (``warm``). Predictions go to Spark's noop sink. ``cpu`` is the
processor time of the JVM and the Python workers for the warm ones, which other programs hardly affect.

``ours``: ``predict``. ``udf``: ``predict_udf`` on the same columns. ``batch best``: ``pyspark.ml.functions.
predict_batch_udf`` with a tf.function, batches as large as Spark's, one thread per task. ``batch docs``: the same as in
Spark's documentation, ``model.predict`` in batches of 100. ``pandas``: a pandas UDF that calls
``model.predict`` once per Arrow batch. ``floor``: Spark alone, with an Arrow function that returns its first argument.

Models: ``dense``, 20 float columns, 20-64-64-1. ``cnn``, an array of 784 floats as 28x28x1, 10 classes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from drivers import measure, print_result
from launch import descendants

SYSTEMS = ("ours", "udf", "batch best", "batch docs", "pandas", "floor")
# Rows per job; fewer for systems that take a hundred times longer per row.
ROWS = {"dense": {"batch docs": 40_000, "": 2_000_000}, "cnn": {"batch docs": 10_000, "": 60_000}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="predictions after the first, per round")
    parser.add_argument("--models", nargs="+", default=["dense", "cnn"], choices=list(ROWS))
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--batch-size", type=int, default=4096, help="ours")
    parser.add_argument("--as", dest="role", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        drive(options.role, options.models[0], options.repeats, options.batch_size)
        return
    for model in options.models:
        measured = {system: {"cold": [], "warm": [], "cpu": []} for system in options.systems}
        for number in range(options.rounds):
            for system in options.systems:
                arguments = ("--models", model, "--repeats", options.repeats, "--batch-size", options.batch_size)
                result = measure(__file__, system, *arguments, TF_CPP_MIN_LOG_LEVEL="2")
                measured[system]["cold"].append(result["cold"])
                measured[system]["cpu"].append(result["cpu"])
                measured[system]["warm"] += result["warm"]
                print(f"# {model} round {number + 1} {system}: {json.dumps(result)}", file=sys.stderr)
        show(model, measured)


def drive(system, model, repeats, batch_size):
    """Run the driver process of one system; report seconds of the first prediction, rows per second of the others."""
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as F

    builder = SparkSession.builder.master("local[2]").config("spark.driver.memory", "3g")
    spark = builder.config("spark.ui.enabled", "false").getOrCreate()
    rows = ROWS[model].get(system, ROWS[model][""])
    rows_df = spark.range(0, rows, 1, 2)
    if model == "dense":
        columns = [f"c{i}" for i in range(20)]
        df = rows_df.select("id", *(F.rand(i).cast("float").alias(name) for i, name in enumerate(columns)))
    else:
        columns = ["image"]
        pixels = F.transform(
            F.sequence(F.lit(0), F.lit(783)), lambda i: ((i * 37 + F.col("id")) % 255 / 255).cast("float")
        )
        df = rows_df.select("id", pixels.alias("image"))
    df = df.cache()
    df.count()
    drain(df.withColumn("prediction", floor_udf()(*columns)))  # excludes the start of Spark and its Python workers
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.keras"
        subprocess.run([sys.executable, "-c", SAVE[model], path], check=True, capture_output=True)
        make = maker(system, model, path, columns, batch_size)
        started = time.perf_counter()
        made = make(df)
        drain(made)
        cold = time.perf_counter() - started
        warm, used = [], cpu_seconds()
        for _ in range(repeats):
            started = time.perf_counter()
            drain(made)
            warm.append(round(rows / (time.perf_counter() - started)))
        used = (cpu_seconds() - used) / (repeats * rows / 1e6)
    print_result({"cold": round(cold, 2), "warm": warm, "cpu": round(used, 2)})
    spark.stop()


SAVE = {
    "dense": """
import sys, keras
layers = [keras.Input((20,)), *(keras.layers.Dense(64, activation="relu") for _ in range(2)), keras.layers.Dense(1)]
keras.Sequential(layers).save(sys.argv[1])
""",
    "cnn": """
import sys, keras
from keras import layers as L
layers = [keras.Input((28, 28, 1)), L.Conv2D(16, 3, activation="relu"), L.MaxPooling2D(),
          L.Conv2D(32, 3, activation="relu"), L.MaxPooling2D(), L.Flatten(), L.Dense(10, activation="softmax")]
keras.Sequential(layers).save(sys.argv[1])
""",
}


def cpu_seconds():
    """Return the processor time of this driver's descendants so far."""
    ticks = 0
    for pid in descendants(os.getpid()):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        except OSError:
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def drain(df):
    df.write.format("noop").mode("overwrite").save()


def maker(system, model, path, columns, batch_size):
    """Return a function that adds predictions to the DataFrame."""
    kind = "float" if model == "dense" else "array<float>"
    shape = [20] if model == "dense" else [28, 28, 1]
    if system == "ours":
        from spark_tensorflow_distributor.inference.predict import predict

        features = columns if model == "dense" else columns[0]
        return lambda df: predict(df, path, features, stack=model == "dense", batch_size=batch_size)
    if system == "udf":
        from spark_tensorflow_distributor.inference.predict import predict_udf

        return lambda df: df.withColumn(
            "prediction", predict_udf(path, stack=model == "dense", batch_size=batch_size)(*columns)
        )
    if system == "floor":
        function = floor_udf()
    elif system == "pandas":
        function = pandas_udf(path, shape, kind)
    else:
        from pyspark.sql import functions as F

        function = batch_udf(path, shape, kind, best=system == "batch best")
        if model == "dense":  # one struct: to_numpy gives the tensor; an array would be built row by row
            return lambda df: df.withColumn("prediction", function(F.struct(*columns)))
    return lambda df: df.withColumn("prediction", function(*columns))


def floor_udf():
    import pyarrow as pa
    from pyspark.sql import functions as F

    def floor(batches):
        for batch in batches:
            first = batch[0] if isinstance(batch, tuple) else batch.values[:: len(batch.values) // len(batch)]
            yield first.cast(pa.float32())

    floor.__annotations__ = {"batches": Iterator[tuple[pa.Array, ...]], "return": Iterator[pa.Array]}
    return F.arrow_udf(floor, "float")


def batch_udf(path, shape, kind, best):
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql.types import ArrayType, FloatType

    is_scalar = kind == "float"

    def make():
        import tensorflow as tf

        if best:
            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        model = tf.keras.models.load_model(path)
        call = model.predict
        if best:
            graph = tf.function(
                lambda x: model(x, training=False), input_signature=[tf.TensorSpec([None, *shape], tf.float32)]
            )

            def call(inputs):
                return graph(tf.convert_to_tensor(inputs, tf.float32)).numpy()

        def predict(inputs):
            outputs = call(inputs)
            return outputs[:, 0] if is_scalar else outputs

        return predict

    return predict_batch_udf(
        make,
        return_type=FloatType() if is_scalar else ArrayType(FloatType()),
        batch_size=10_000 if best else 100,
        input_tensor_shapes=[shape],
    )


def pandas_udf(path, shape, kind):
    import pandas as pd
    from pyspark.sql import functions as F

    def predict(batches):
        import numpy as np
        import tensorflow as tf

        model = tf.keras.models.load_model(path)
        for batch in batches:
            rows = np.stack(batch, axis=1) if len(batch) > 1 else np.stack(batch[0].to_numpy())
            outputs = model.predict(rows.reshape(-1, *shape), verbose=0, batch_size=len(rows))
            yield pd.Series(outputs[:, 0] if kind == "float" else list(outputs))

    predict.__annotations__ = {"batches": Iterator[tuple[pd.Series, ...]], "return": Iterator[pd.Series]}
    return F.pandas_udf(predict, kind)


def show(model, measured):
    print(f"\n{model}, local[2] on {os.cpu_count()} cores; median (minimum to maximum); ratio of ours to this one")
    ours = measured.get("ours")
    for system, numbers in measured.items():
        warm, cold = statistics.median(numbers["warm"]), statistics.median(numbers["cold"])
        cpu = statistics.median(numbers["cpu"])
        ratio = f"{statistics.median(ours['warm']) / warm:6.1f}x" if ours else ""
        cpu_ratio = f"{cpu / statistics.median(ours['cpu']):6.1f}x" if ours else ""
        spread = f"({min(numbers['warm']):,} to {max(numbers['warm']):,})"
        print(
            f"  {system:10} warm {warm:11,.0f} rows/s {spread:24} {ratio}   cpu {cpu:8.2f} s/M rows {cpu_ratio}   "
            f"cold {cold:5.1f} s"
        )


if __name__ == "__main__":
    main()
