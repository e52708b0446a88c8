"""Measures a step of ``fit``: one process, workers started by hand, 1.0.0 on Spark, and ours.

    .venv/bin/python benchmarks/step.py --workers 2 4 --rounds 3

In each round every system trains every model for some epochs, in turn, so that a change in the machine's speed
affects all of them. What building and tracing the step adds to the first epoch is shown separately. All systems use the
same arrays, global batch, optimizer and callbacks, and the function that a user would write; the loss of the last epoch
is compared, too.

- ``one``: one process with all cores, Keras 3.
- ``apart``: as many independent processes as workers, each with its part of the batch and of the cores: the cost of the
  computation without communication. Its loss is the loss of one part.
- ``hand``: MultiWorkerMirroredStrategy with TF_CONFIG and plain processes; Keras 3, with patches for the two faults
  that keep ``fit`` from running at all.
- ``hand-tf_keras``: the same with tf_keras, which needs no patches.
- ``1.0.0``: spark-tensorflow-distributor 1.0.0 from PyPI on Spark, with tf_keras.
- ``ours``: this library on Spark, Keras 3; ``ours-tf_keras``: with tf_keras.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time

from drivers import install_peer, measure, print_result

SYSTEMS = ("one", "apart", "hand", "hand-tf_keras", "1.0.0", "ours", "ours-tf_keras")
MODELS = ("cnn", "wide", "dense", "lstm")
BATCH = 256


def train(model_name, steps, epochs, batch=256):
    """Train as a user's function would. It imports its modules itself, because it is pickled."""
    import time

    import numpy as np
    import tensorflow as tf

    keras = tf.keras
    layers = keras.layers
    keras.utils.set_random_seed(1)
    random = np.random.default_rng(0)
    rows = batch * steps
    labels = random.integers(0, 10, rows)
    if model_name == "cnn":
        x = random.random((rows, 28, 28, 1), "float32")
        model = keras.Sequential(
            [keras.Input((28, 28, 1)), layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(),
             layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten(),
             layers.Dense(200, activation="relu"), layers.Dense(10)]
        )  # fmt: skip
    elif model_name == "wide":
        x = {"id": random.integers(0, 1_000_000, (rows, 8)), "number": random.random((rows, 16), "float32")}
        ids, number = keras.Input((8,), dtype="int64", name="id"), keras.Input((16,), name="number")
        deep = layers.Concatenate()([layers.Flatten()(layers.Embedding(1_000_000, 32)(ids)), number])
        deep = layers.Dense(128, activation="relu")(layers.Dense(256, activation="relu")(deep))
        model = keras.Model({"id": ids, "number": number}, layers.Dense(10)(layers.Concatenate()([deep, number])))
    elif model_name == "dense":
        x = random.random((rows, 1024), "float32")
        wide = [layers.Dense(2900, activation="relu") for _ in range(3)]
        model = keras.Sequential([keras.Input((1024,)), *wide, layers.Dense(2000, activation="relu"), layers.Dense(10)])
    else:
        x = random.random((rows, 32, 24), "float32")
        model = keras.Sequential([keras.Input((32, 24)), layers.LSTM(64, return_sequences=True), layers.LSTM(64),
                                  layers.Dense(10)])  # fmt: skip
    # SGD for the table: Adam would touch all of its 32M numbers in each step, with any system.
    optimizer = keras.optimizers.SGD(0.01) if model_name == "wide" else keras.optimizers.Adam(1e-3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    seconds, ended = [], []

    class Timer(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.begun = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            ended.append(time.perf_counter())
            seconds.append(ended[-1] - self.begun)

    began = time.perf_counter()
    history = model.fit(x, labels, batch_size=batch, epochs=epochs, shuffle=False, verbose=0, callbacks=[Timer()])
    # What building and tracing the step adds to the first epoch.
    first = ended[0] - began - sorted(seconds[1:])[len(seconds[1:]) // 2]
    return first, [1000 * each / steps for each in seconds[1:]], float(history.history["loss"][-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=0, help="per epoch; default: about two seconds' worth")
    parser.add_argument("--as", dest="role", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        drive(options)
        return
    if "1.0.0" in options.systems:
        install_peer()
    for workers in options.workers:
        for model in options.models:
            measured = {system: [] for system in options.systems}
            firsts = {system: [] for system in options.systems}
            losses = {}
            for number in range(options.rounds):
                for system in options.systems:
                    first, times, losses[system] = measure_one(system, model, workers, options)
                    firsts[system].append(first)
                    measured[system] += times
                    shown = ", ".join(f"{each:.1f}" for each in times)
                    what = f"{model} {workers} workers round {number + 1} {system}"
                    print(f"# {what}: {first:.2f} s, {shown}", file=sys.stderr)
            show(model, workers, measured, firsts, losses)


def measure_one(system, model, workers, options):
    """Return the seconds that tracing adds, the milliseconds per step of each other epoch, and the last loss."""
    steps = options.steps or {"cnn": 60, "wide": 100, "dense": 6, "lstm": 40}[model]
    env = {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
    if system.endswith("tf_keras"):
        env["TF_USE_LEGACY_KERAS"] = "1"
    arguments = ("--workers", workers, "--models", model, "--steps", steps, "--epochs", options.epochs)
    return measure(__file__, system, *arguments, **env)


def drive(options):
    """Run the driver process of one system."""
    system, model, workers = options.role, options.models[0], options.workers[0]
    if options.rank is not None:
        result = worker_apart(model, options) if system == "apart" else worker_by_hand(model, options)
    elif system == "one":
        result = train(model, options.steps, options.epochs)
    elif system.startswith(("hand", "apart")):
        start_workers(workers)
        return
    else:
        from pyspark.sql import SparkSession

        spark = SparkSession.builder.master(f"local[{workers}]").config("spark.ui.enabled", "false")
        spark = spark.config("spark.driver.memory", "2g").getOrCreate()
        from spark_tensorflow_distributor import MirroredStrategyRunner

        runner = MirroredStrategyRunner(num_slots=workers, use_gpu=False)
        result = runner.run(train, model_name=model, steps=options.steps, epochs=options.epochs)
        spark.stop()
    print_result(result)


def start_workers(workers):
    """Start a process per worker; rank 0 prints the measurements."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(workers)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        cluster = {"worker": [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]}
    processes = []
    for rank in range(workers):
        config = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})
        command = [sys.executable, *sys.argv, "--rank", str(rank)]
        output = None if rank == 0 else subprocess.DEVNULL
        processes.append(subprocess.Popen(command, env={**os.environ, "TF_CONFIG": config}, stdout=output))
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes):
            for process in processes:
                process.kill()
            raise SystemExit("a worker failed")
        time.sleep(0.1)


def worker_apart(model, options):
    import tensorflow as tf

    workers = options.workers[0]
    tf.config.threading.set_intra_op_parallelism_threads(max(1, os.cpu_count() // workers))
    tf.config.threading.set_inter_op_parallelism_threads(4)
    return train(model, options.steps, options.epochs, BATCH // workers)


def worker_by_hand(model, options):
    import tensorflow as tf

    if not os.environ.get("TF_USE_LEGACY_KERAS"):
        mend_by_hand(tf)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        result = train(model, options.steps, options.epochs)
    print_result(result)
    os._exit(0)


def mend_by_hand(tf):
    """Apply the patches without which Keras 3 does not run at all."""
    from keras.src.backend.tensorflow import trainer

    build, reduce_per_replica = trainer.TensorFlowTrainer._maybe_symbolic_build, trainer.reduce_per_replica

    def maybe_symbolic_build(self, iterator=None, data_batch=None):
        if iterator is not None:
            for *_, batches in iterator:
                local = self.distribute_strategy.experimental_local_results
                data_batch = tf.nest.map_structure(lambda value: local(value)[0], next(batches))  # noqa: B023
                break
        return build(self, data_batch=data_batch)

    def reduce(values, strategy, reduction):
        if reduction != "auto":
            return reduce_per_replica(values, strategy, reduction)
        return tf.nest.map_structure(lambda value: strategy.reduce("MEAN", value, axis=None), values)

    trainer.TensorFlowTrainer._maybe_symbolic_build, trainer.reduce_per_replica = maybe_symbolic_build, reduce


def show(model, workers, measured, firsts, losses):
    print(
        f"\n{model}, {workers} workers, batch {BATCH}, {os.cpu_count()} cores; ms per step, median (minimum to maximum)"
    )
    base = {name: statistics.median(times) for name, times in measured.items()}
    for system, times in measured.items():
        ratios = [
            f"{base[system] / base[other]:.2f}x {other}" for other in ("one", "apart", "hand", "1.0.0") if other in base
        ]
        spread = f"({min(times):.1f} to {max(times):.1f})"
        rest = f"tracing {statistics.median(firsts[system]):.2f} s, loss {losses[system]:.4f}"
        print(f"  {system:14} {base[system]:7.1f} {spread:20} {', '.join(ratios):42} {rest}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
