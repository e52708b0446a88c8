"""Measures what tracking costs: a step of ``fit`` with history, callbacks and log_dir, and reports of a custom loop.

    .venv/bin/python benchmarks/tracking_cost.py

``fits``: one run trains the small CNN of step.py on two workers, with a RunCallback and a log_dir. Fits with tracking
and without it alternate within the run, so that a change in the machine's speed affects both. With tracking, as always,
steps are timed and epochs are reported; the workers wait for the callback on the driver after each epoch; and each rank
appends to a file below log_dir once per epoch, as Keras' TensorBoard does, which travels to the driver. Without it, all
this is switched off in the trainer; the agent only looks for new files. An epoch lasts until the next begins.

``runs``: whole runs with callbacks and log_dir, and runs without them, in turn: noisier, but with all that agents do.

``reports``: a custom loop calls ``get_context().report(step, loss=..., accuracy=...)`` 100,000 times.
"""

import argparse
import statistics
import sys
import tempfile
import time

from drivers import measure, print_result

BATCH = 256


def train(steps, epochs, modes):
    """Train the small CNN; return the mode of each fit, and the milliseconds per step of its epochs but the last."""
    import time

    import numpy as np
    import tensorflow as tf

    from spark_tensorflow_distributor import get_context
    from spark_tensorflow_distributor.resume.fit_session import FitSession
    from spark_tensorflow_distributor.runtime.trainer.control import Control
    from spark_tensorflow_distributor.training.step_times import step_times

    keras = tf.keras
    layers = keras.layers
    keras.utils.set_random_seed(1)
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, BATCH * steps)
    x = random.random((BATCH * steps, 28, 28, 1), "float32")
    model = keras.Sequential(
        [keras.Input((28, 28, 1)), layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D(),
         layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D(), layers.Flatten(),
         layers.Dense(200, activation="relu"), layers.Dense(10)]
    )  # fmt: skip
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    context = get_context()

    class Timer(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.begun = []

        def on_epoch_begin(self, epoch, logs=None):
            self.begun.append(time.perf_counter())

    class Lines(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            with open(f"{context.log_dir}/rank{context.rank}.csv", "a") as file:
                file.write(f"{epoch},{logs}\n" * 20)

    class NoClock:
        def __getattr__(self, name):
            return lambda *args: {}

    session_init, end_epoch = FitSession.__init__, Control.end_epoch

    def init_without_clock(self, *args, **kwargs):
        session_init(self, *args, **kwargs)
        self._clock = NoClock()

    def switch(is_on):
        for name in ("begin", "has_batch", "end", "cancel"):
            vars(step_times).pop(name, None) if is_on else setattr(step_times, name, lambda: None)
        Control.end_epoch = end_epoch if is_on else lambda self, entry: None
        FitSession.__init__ = session_init if is_on else init_without_clock

    found = []
    for mode in ("warm", *modes):
        switch(mode != "off")
        timer = Timer()
        callbacks = [timer, *([Lines()] if context.log_dir and mode != "off" else [])]
        model.fit(x, labels, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
        spans = zip(timer.begun, timer.begun[1:], strict=False)
        found.append((mode, [1000 * (after - before) / steps for before, after in spans]))
    return found[1:]


def loop(count):
    """Report as a custom loop does; return the seconds of all calls."""
    import time

    from spark_tensorflow_distributor import get_context

    context, begun = get_context(), time.perf_counter()
    for step in range(count):
        context.report(step, loss=1.0 / (step + 1), accuracy=0.5)
    return time.perf_counter() - begun


def drive(options):
    """Run the driver process."""
    from pyspark.sql import SparkSession

    from spark_tensorflow_distributor import MirroredStrategyRunner, RunCallback

    class Counter(RunCallback):
        epochs = 0

        def on_epoch_end(self, fit, epoch, logs):
            self.epochs += 1

    spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    spark = spark.config("spark.driver.memory", "2g").getOrCreate()

    def run(function, tracked, **arguments):
        with tempfile.TemporaryDirectory() as folder:
            extra = {"callbacks": [Counter()], "log_dir": folder} if tracked else {}
            runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, progress=False, **extra)
            return runner.run(function, **arguments), runner.report, extra.get("callbacks")

    sizes = {"steps": options.steps, "epochs": options.epochs}
    modes = [mode for number in range(options.fits) for mode in (("on", "off"), ("off", "on"))[number % 2]]
    fits, _, _ = run(train, True, **sizes, modes=modes)
    print(f"# fits: {fits}", file=sys.stderr)
    runs = {"on": [], "off": []}
    for number in range(options.rounds):
        for mode in (("on", "off"), ("off", "on"))[number % 2]:
            found, _, _ = run(train, mode == "on", **sizes, modes=[mode if mode == "on" else "plain"] * 2)
            print(f"# run {mode}: {found}", file=sys.stderr)
            runs[mode].append(statistics.median(each for _, times in found for each in times))
    begun = time.perf_counter()
    calls, report, callbacks = run(loop, True, count=options.reports)
    seconds = time.perf_counter() - begun
    reports = {"calls": calls, "run": seconds, "heard": callbacks[0].epochs, "kept": len(report.history)}
    spark.stop()
    print_result({"fits": fits, "runs": runs, "reports": reports})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fits", type=int, default=10, help="pairs of fits within a run")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs")
    parser.add_argument("--epochs", type=int, default=3, help="per fit")
    parser.add_argument("--steps", type=int, default=30, help="per epoch")
    parser.add_argument("--reports", type=int, default=100_000)
    parser.add_argument("--as", dest="role", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        drive(options)
        return
    names = ("fits", "rounds", "epochs", "steps", "reports")
    found = measure(__file__, "ours", *(f"--{name}={getattr(options, name)}" for name in names))
    by_mode = {
        mode: [statistics.median(times) for each, times in found["fits"] if each == mode] for mode in ("on", "off")
    }
    show("fits", by_mode)
    show("runs", found["runs"])
    reports = found["reports"]
    call = 1e6 * reports["calls"] / options.reports
    print(
        f"{options.reports} reports: {call:.1f} us a call, {reports['calls']:.2f} s of a run of {reports['run']:.2f} s"
    )
    print(f"the callback got {reports['heard']} of them, the history kept {reports['kept']}")


def show(name, by_mode):
    on, off = by_mode["on"], by_mode["off"]
    ratios = sorted(a / b for a, b in zip(on, off, strict=True))
    print(
        f"{name}: on {statistics.median(on):.2f} ms a step, off {statistics.median(off):.2f}; ratios of pairs: median "
        f"{statistics.median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}"
    )


if __name__ == "__main__":
    main()
