"""Measures the recovery time after a fault, and the cost of checkpoints.

    .venv/bin/python benchmarks/recovery.py --what recovery   # as root: three hosts, see scripts/cluster
    .venv/bin/python benchmarks/recovery.py --what cost

recovery: seconds from a fault until all workers have completed a step; and for comparison, in the same driver, seconds
from a call of ``run`` to the first step, cold (new executors, which must import TensorFlow) and warm. Rank 1 injects
the faults into itself: it kills its trainer, its Python worker, or the JVM of its executor.

cost: seconds per step with and without checkpoints, in turn, with two workers on a local master. ``cnn`` is a small CNN
(0.32 M parameters), ``dense`` has 24 M, so that a checkpoint with Adam's moments is 285 MB. Checkpoints every 30
seconds are the default; every 10 seconds shows what one costs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
FAULTS = ("trainer", "python worker", "executor")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", choices=("recovery", "cost"), nargs="+", default=["recovery", "cost"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=70, help="of training per measurement of cost")
    parser.add_argument("--models", choices=("cnn", "dense"), nargs="+", default=["cnn", "dense"])
    parser.add_argument("--as", dest="role", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        drive_faults(options.rounds)
        return
    if "recovery" in options.what:
        recovery(options)
    if "cost" in options.what:
        cost(options)


# ---- recovery


def recovery(options):
    sys.path.append(str(HERE.parent / "scripts" / "lib"))
    from hosts import Hosts, why_not

    if reason := why_not():
        print(f"recovery is not measured: {reason}")
        return
    with tempfile.TemporaryDirectory() as folder, Hosts(Path(folder), workers=3, cores=1, number=4) as hosts:
        command = [sys.executable, __file__, "--as", "driver", "--rounds", str(options.rounds)]
        source = str(HERE.parent / "src")
        environment = hosts.environment(0) | {"PYTHONPATH": source, "DRIVER_HOST": hosts.address(0)}
        done = subprocess.run(
            hosts.command(0, *command), env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    measured = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    print("seconds until all three workers have completed a step; median (minimum to maximum)")
    for name in ("cold start", "warm start", *(f"after the {fault} was killed" for fault in FAULTS)):
        values = sorted(each["seconds"] for each in measured if each["name"] == name)
        print(f"  {name:36s} {statistics.median(values):6.1f} ({values[0]:.1f} to {values[-1]:.1f})")


def drive_faults(rounds):
    from pyspark.sql import SparkSession

    from spark_tensorflow_distributor import MirroredStrategyRunner

    def new_session():
        settings = {
            "spark.driver.host": os.environ["DRIVER_HOST"],
            "spark.ui.enabled": "false",
            "spark.ui.showConsoleProgress": "false",
            "spark.executor.memory": "1g",
        }
        builder = SparkSession.builder.master(os.environ["SPARK_MASTER"])
        for key, value in settings.items():
            builder = builder.config(key, value)
        session = builder.getOrCreate()
        session.sparkContext.setLogLevel("ERROR")
        return session

    def record(name, seconds):
        print("RESULT " + json.dumps({"name": name, "seconds": seconds}), flush=True)

    for _ in range(rounds):
        spark = new_session()
        for name in ("cold start", "warm start"):
            started = time.time()
            runner = MirroredStrategyRunner(num_slots=3, use_gpu=False, spark=spark, log_to_driver=False)
            record(name, runner.run(faulty_training(), fault=None)["first"] - started)
        for fault in FAULTS:
            runner = MirroredStrategyRunner(
                num_slots=3, use_gpu=False, spark=spark, max_restarts=1, checkpoint_every="5 steps", log_to_driver=False
            )
            with tempfile.TemporaryDirectory() as folder:
                note = f"{folder}/killed"
                first = runner.run(faulty_training(), fault=fault, note=note)["first"]
                record(f"after the {fault} was killed", first - float(Path(note).read_text()))
        spark.stop()


def faulty_training():
    def train(fault, note=None):
        import os
        import signal
        import time

        import numpy as np
        import tensorflow as tf

        from spark_tensorflow_distributor import get_context

        context = get_context()
        seen = []

        def of_this_host(text):
            """Return the processes whose command line contains this text, and their parents."""
            found, own = {}, os.readlink("/proc/self/ns/net")
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    with open(f"/proc/{pid}/cmdline") as file:
                        line = file.read().replace("\0", " ")
                    with open(f"/proc/{pid}/stat") as file:
                        parent = int(file.read().rpartition(")")[2].split()[1])
                    if text in line and os.readlink(f"/proc/{pid}/ns/net") == own:
                        found[int(pid)] = parent
                except OSError:
                    continue
            return found

        def victims():
            if fault == "executor":
                return of_this_host("CoarseGrainedExecutorBackend")
            daemons = of_this_host("pyspark.daemon")
            workers = [pid for pid, parent in daemons.items() if parent in daemons]
            return workers if fault == "python worker" else [os.getpid()]

        class Watch(tf.keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                seen.append(time.time())
                if fault and (context.attempt, context.rank, len(seen)) == (0, 1, 20):
                    with open(note, "w") as file:
                        file.write(str(time.time()))
                    for pid in victims():
                        os.kill(pid, signal.SIGKILL)

        model = tf.keras.Sequential(
            [tf.keras.layers.Input((64,)), tf.keras.layers.Dense(32), tf.keras.layers.Dense(10)]
        )
        model.compile("adam", "mse")
        rows = np.zeros((960, 64), "float32"), np.zeros((960, 10), "float32")
        model.fit(*rows, batch_size=96, epochs=4, shuffle=False, callbacks=[Watch()])
        return {"first": seen[0]}  # a step ends when all workers have completed it

    return train


# ---- cost


def cost(options):
    from pyspark.sql import SparkSession

    from spark_tensorflow_distributor import MirroredStrategyRunner

    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    ways = {"none": {}, "30 s": {"max_restarts": 1}, "10 s": {"max_restarts": 1, "checkpoint_every": 10.0}}
    for model in options.models:
        steps = {way: [] for way in ways}
        commits = dict.fromkeys(ways, 0)
        for _ in range(options.rounds):
            for way, arguments in ways.items():
                runner = MirroredStrategyRunner(
                    num_slots=2, use_gpu=False, spark=spark, log_to_driver=False, **arguments
                )
                steps[way].append(runner.run(steady_training(), kind=model, seconds=options.seconds))
                commits[way] += len(runner.report.attempts[-1].checkpoints)
        print(f"{model}: milliseconds per step, two workers on {os.cpu_count()} cores, {options.rounds} rounds in turn")
        for way in ways:
            mean = statistics.mean(steps[way])
            ratio = mean / statistics.mean(steps["none"])
            print(f"  checkpoints {way:5s} {1000 * mean:8.2f}  {ratio:.3f}x  {commits[way]} checkpoints")
    spark.stop()


def steady_training():
    def train(kind, seconds):
        import time

        import numpy as np
        import tensorflow as tf

        from spark_tensorflow_distributor import get_context

        layers = tf.keras.layers
        if kind == "cnn":
            shape, stack = (28, 28, 1), [
                layers.Conv2D(16, 3, activation="relu"), layers.MaxPooling2D(), layers.Conv2D(32, 3, activation="relu"),
                layers.Flatten(), layers.Dense(80, activation="relu"), layers.Dense(10),
            ]  # fmt: skip
        else:
            shape, stack = (1024,), [layers.Dense(3200, activation="relu") for _ in range(3)] + [layers.Dense(10)]
        model = tf.keras.Sequential([layers.Input(shape), *stack])
        model.compile("adam", tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        rows = 2560 if kind == "cnn" else 640
        data = tf.data.Dataset.from_tensor_slices((np.zeros((rows, *shape), "float32"), np.zeros(rows, "int32")))
        data = data.repeat().batch(256 if kind == "cnn" else 64)

        class Watch(tf.keras.callbacks.Callback):
            def __init__(self):
                super().__init__()
                self.times = []

            def on_train_batch_end(self, batch, logs=None):
                self.times.append(time.time())

            def seconds(self):
                """Return the seconds between steps, excluding the first ones and the end."""
                return self.times[-1] - self.times[3]

        watch = Watch()
        model.fit(data, steps_per_epoch=12, epochs=1, verbose=0, callbacks=[watch])
        # As many steps as fill the time; the same number on every rank.
        each = float(tf.distribute.get_strategy().reduce("MEAN", tf.constant(watch.seconds() / 8), axis=None))
        watch.times.clear()
        model.fit(data, steps_per_epoch=int(seconds / each), epochs=1, verbose=0, callbacks=[watch])
        assert get_context().world_size == 2
        return watch.seconds() / (len(watch.times) - 4)

    return train


if __name__ == "__main__":
    main()
