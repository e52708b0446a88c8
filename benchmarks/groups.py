"""Measures one small Keras model for each of many keys: models per second, on local[2].

    .venv/bin/python benchmarks/groups.py --keys 10000 --by-hand 100

Each round starts one driver process per system, in turn, so that a change in the machine's speed affects all of them.
Each process caches its rows and starts Spark's Python workers, then trains a model for each key (``first``, which
includes importing TensorFlow, and building and tracing in both workers), and once more (``again``). ``cpu`` is the
processor time of the JVM and the Python workers per 1,000 keys for the second time, which other programs hardly affect.
``memory`` is the largest resident size of a Python worker at the end.

``ours``: ``KerasRegressor`` with ``groupCol``. ``by hand``: ``applyInPandas`` with a function that builds, compiles,
fits and returns the weights, as a user would write it. ``reused``: the same, but each worker keeps its compiled model
and resets its weights and its optimizer by hand. ``floor``: ``applyInPandas`` with a function that returns a constant.

The model has 4 inputs and layers of 16, 8 and 1 units; a key has 50 rows, and is trained for 5 epochs in batches of 32.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

from drivers import measure, print_result
from launch import descendants
from predict import cpu_seconds

SYSTEMS = ("ours", "by hand", "reused", "floor")
FEATURES = ["a", "b", "c", "d"]
ROWS, EPOCHS, BATCH = 50, 5, 32


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--keys", type=int, default=10_000, help="for ours and floor")
    parser.add_argument("--by-hand", type=int, default=100, help="keys for the other systems")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--as", dest="role", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        drive(options.role, options.keys)
        return
    measured = {system: [] for system in options.systems}
    for number in range(options.rounds):
        for system in options.systems:
            keys = options.keys if system in ("ours", "floor") else options.by_hand
            result = measure(__file__, system, "--keys", keys, timeout=3600, TF_CPP_MIN_LOG_LEVEL="2")
            measured[system].append(result)
            print(f"# round {number + 1} {system}: {json.dumps(result)}", file=sys.stderr, flush=True)
    show(measured)


def drive(system, keys):
    """Run the driver process of one system."""
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as F

    builder = SparkSession.builder.master("local[2]").config("spark.driver.memory", "3g")
    spark = builder.config("spark.ui.enabled", "false").config("spark.sql.shuffle.partitions", 8).getOrCreate()
    # applyInPandas would otherwise train all keys in one or two tasks: their rows are small.
    spark.conf.set("spark.sql.adaptive.coalescePartitions.enabled", "false")
    columns = [F.rand(number).cast("float").alias(name) for number, name in enumerate(FEATURES)]
    rows = spark.range(0, keys * ROWS, 1, 2).select((F.col("id") % keys).alias("store"), *columns)
    df = rows.withColumn("y", (F.col("a") * 2 - F.col("b") * F.col("store") / keys).cast("float")).cache()
    df.count()
    df.groupBy("store").applyInPandas(constant, "store long, model binary").write.format("noop").mode(
        "overwrite"
    ).save()
    train = (
        by_estimator
        if system == "ours"
        else by_function({"by hand": by_hand, "reused": reused, "floor": constant}[system])
    )
    seconds = []
    for _ in range(2):
        used, started = cpu_seconds(), time.perf_counter()
        found = train(df)
        seconds.append(time.perf_counter() - started)
        used = cpu_seconds() - used
        assert found == keys, found
    print_result(
        {
            "keys": keys,
            "first": round(keys / seconds[0], 2),
            "again": round(keys / seconds[1], 2),
            "cpu": round(used / keys * 1000, 1),
            "memory": memory(),
        }
    )
    spark.stop()


def by_estimator(df):
    from spark_tensorflow_distributor.ml import KerasRegressor

    model = KerasRegressor(
        modelFn=build, groupCol="store", inputCols=FEATURES, labelCol="y", epochs=EPOCHS, batchSize=BATCH, seed=1
    ).fit(df)
    model.unpersist()
    return model.groups.num_groups - model.groups.num_failed


def by_function(function):
    def train(df):
        trained = df.groupBy("store").applyInPandas(function, "store long, model binary").persist()
        count = trained.where("model IS NOT NULL").count()
        trained.unpersist()
        return count

    return train


def build():
    import keras

    layers = [keras.Input((4,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile("adam", "mse")
    return model


def by_hand(frame):
    import pickle

    import keras
    import pandas as pd

    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)]
    )
    model.compile("adam", "mse")
    features = frame[["a", "b", "c", "d"]].to_numpy("float32")
    model.fit(features, frame["y"].to_numpy("float32"), epochs=5, batch_size=32, verbose=0)
    return pd.DataFrame({"store": [frame["store"].iloc[0]], "model": [pickle.dumps(model.get_weights())]})


def reused(frame):
    import pickle
    import sys

    import keras
    import pandas as pd

    kept = sys.__dict__.setdefault("_benchmark_model", [])
    if not kept:
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)]
        )
        model.compile("adam", "mse")
        model.optimizer.build(model.trainable_variables)
        kept[:] = [model, [variable.numpy() for variable in (*model.variables, *model.optimizer.variables)]]
    model, initial = kept
    for variable, value in zip((*model.variables, *model.optimizer.variables), initial, strict=True):
        variable.assign(value)
    features = frame[["a", "b", "c", "d"]].to_numpy("float32")
    model.fit(features, frame["y"].to_numpy("float32"), epochs=5, batch_size=32, verbose=0)
    return pd.DataFrame({"store": [frame["store"].iloc[0]], "model": [pickle.dumps(model.get_weights())]})


def constant(frame):
    import pandas as pd

    return pd.DataFrame({"store": [frame["store"].iloc[0]], "model": [b"x"]})


def memory():
    """Return the largest resident size of a Python process below this one, in MiB."""
    sizes = [0]
    for pid in descendants(os.getpid()):
        try:
            if "python" in Path(f"/proc/{pid}/exe").resolve().name:
                sizes.append(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20)
        except OSError:
            continue
    return max(sizes)


def show(measured):
    def median(system, name):
        return statistics.median(result[name] for result in measured[system])

    columns = ["system", "keys", "first, keys/s", "again, keys/s", "ours / system"]
    print(f"| {' | '.join([*columns, 'CPU s per 1,000 keys', 'ours / system', 'memory, MB'])} |")
    print("|---|---|---|---|---|---|---|---|")
    for system in measured:
        ratios = ["", ""]
        if "ours" in measured:
            ratios = [
                f"{median('ours', 'again') / median(system, 'again'):.1f}x",
                f"{median('ours', 'cpu') / median(system, 'cpu'):.3f}x",
            ]
        values = [
            f"{median(system, 'keys'):,.0f}",
            f"{median(system, 'first'):.2f}",
            f"{median(system, 'again'):.2f}",
            ratios[0],
            f"{median(system, 'cpu'):.1f}",
            ratios[1],
            f"{median(system, 'memory'):.0f}",
        ]
        print(f"| {' | '.join([system, *values])} |")


if __name__ == "__main__":
    main()
