"""Trains on a DataFrame in local mode, over Connect or on a cluster, and prints the results. argv: settings, mode."""

import gc
import json
import os
import sys

from driver import print_result, session
from pyspark.sql import functions as F

from spark_tensorflow_distributor import MirroredStrategyRunner

mode = sys.argv[2]


def train(data, held_out, kill=False):
    """Return the ids of all ranks, and the losses; the last rank's process may be killed once, in the fifth epoch."""
    import os
    import signal
    import time

    import tensorflow as tf

    from spark_tensorflow_distributor import get_context

    class Kill(tf.keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            context = get_context()
            if kill and epoch == 4 and (context.attempt, context.rank) == (0, context.world_size - 1):
                time.sleep(0.5)  # the last checkpoint may still be in transit
                os.kill(os.getpid(), signal.SIGKILL)

    tf.keras.utils.set_random_seed(1)
    model = tf.keras.Sequential(
        [tf.keras.layers.Input((2,)), tf.keras.layers.Dense(8, activation="tanh"), tf.keras.layers.Dense(1)]
    )
    model.compile(tf.keras.optimizers.Adam(0.02), "mse")
    ids = [int(v) for batch in data.to_tf("id", batch_size=64) for v in batch]
    history = model.fit(
        data.to_tf(["x", "y"], "target", batch_size=64, stack=True, seed=2),
        validation_data=held_out.to_tf(["x", "y"], "target", batch_size=64, stack=True, seed=2),
        epochs=8,
        callbacks=[Kill()],
    )
    if data.num_rows != data.total_rows:
        from pyspark import BarrierTaskContext

        ids = [v for part in BarrierTaskContext.get().allGather(json.dumps(ids)) for v in json.loads(part)]
    losses = {name: history.history[name] for name in ("loss", "val_loss")}
    return {"ids": ids, "attempt": get_context().attempt, **losses}


if mode == "connect":
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.remote("local[3]").getOrCreate()
else:
    spark = session()

columns = [(F.col("id") % 7 / 7).cast("float").alias("x"), (F.col("id") % 11 / 11).cast("float").alias("y")]
frame = spark.range(0, 1001, 1, 4).select("id", *columns).withColumn("target", F.col("x") * F.col("y"))
before = dict(os.environ)
workers = {"local": 1}.get(mode, 2)
runner = MirroredStrategyRunner(num_slots=workers, use_gpu=False, local_mode=mode == "local")
result = runner.run(train, data=frame, held_out=frame.where("id % 5 = 0"))
found = {"ids": sorted(result["ids"]), "loss": result["loss"], "val_loss": result["val_loss"]}
if mode != "local":
    again = MirroredStrategyRunner(num_slots=workers, use_gpu=False, max_restarts=1)
    found["resumed"] = again.run(train, data=frame, held_out=frame.where("id % 5 = 0"), kill=True)
found["environment"] = dict(os.environ) == before
broken = spark.range(10).select(F.raise_error(F.lit("no such luck")).cast("long").alias("id"))
try:
    runner.run(train, data=broken, held_out=frame)
except Exception as error:
    found["broken"] = [type(error).__name__, type(error).__module__, str(error)]
try:
    runner.run(lambda data: data.to_tf("idd", batch_size=64), data=frame)
except Exception as error:
    found["unknown"] = [type(error).__name__, str(error)]
gc.collect()  # the last error holds on to its frames
links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
targets = [os.readlink(link) for link in links if os.path.lexists(link)]
found["left"] = [target for target in targets if "(deleted)" in target]
print_result(found)
spark.stop()
