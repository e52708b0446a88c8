"""Measures real runs of many workers on one machine, with a stand-in for TensorFlow.

    .venv/bin/python benchmarks/many_workers.py --slots 16 64 128 256

Everything but TensorFlow is real: Spark's barrier stage, a Python worker, an agent and a trainer for each rank, the
process group that connects them, and the driver. TensorFlow is the stub of the tests, because hundreds of processes
that import it do not fit into a machine.

Seconds of ``run``: ``first`` and ``repeated`` return at once; in ``lines``, each rank prints 100 lines, and ``lost`` is
how many do not arrive; in ``failure``, the last rank raises, and the others, which sleep, must stop. Memory is the
largest proportional set size of the driver's Python child processes.
"""

import argparse
import logging
import threading
import time
from pathlib import Path

from drivers import measure, print_result
from launch import resident

STUBS = Path(__file__).parent.parent / "tests" / "stubs"
LINES = 100


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--as", dest="role", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        drive(options.slots[0])
        return
    names = ("first", "repeated", "lines", "lost", "failure", "MB")
    print(f"{'workers':>8}" + "".join(f"{name:>10}" for name in names))
    for slots in options.slots:
        found = measure(__file__, "ours", "--slots", slots, timeout=1800)
        print(f"{slots:>8}" + "".join(f"{found[name]:>10}" for name in names), flush=True)


def drive(slots):
    from pyspark.sql import SparkSession

    from spark_tensorflow_distributor import MirroredStrategyRunner, TrainingFailedError, get_context

    spark = SparkSession.builder.master(f"local[{slots}]").config("spark.ui.enabled", "false").getOrCreate()
    spark.range(1).collect()
    env = {"PYTHONPATH": str(STUBS)}
    runner = MirroredStrategyRunner(
        num_slots=slots, use_gpu=False, spark=spark, progress=False, env=env, log_to_driver="logging"
    )
    log, lines = logging.getLogger("spark_tensorflow_distributor.workers"), Counter()
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(lines)

    def rank():
        return get_context().rank

    def print_lines():
        for number in range(LINES):
            print("line", number)

    def fail():
        context = get_context()
        if context.rank == context.world_size - 1:
            raise ValueError("the last rank fails")
        time.sleep(600)

    def failing():
        try:
            runner.run(fail)
        except TrainingFailedError:
            return
        raise AssertionError("the run did not fail")

    peak = Peak()
    functions = {
        "first": lambda: runner.run(rank),
        "repeated": lambda: runner.run(rank),
        "lines": lambda: runner.run(print_lines),
        "failure": failing,
    }
    found = {name: timed(function) for name, function in functions.items()}
    print_result({**found, "lost": slots * LINES - lines.count, "MB": peak.stop()})
    spark.stop()


def timed(function):
    begun = time.perf_counter()
    function()
    return round(time.perf_counter() - begun, 1)


class Counter(logging.Handler):
    """Counts the lines of ``print_lines``."""

    count = 0

    def emit(self, record):
        self.count += record.getMessage().split("] ")[-1].startswith("line ")


class Peak:
    """The largest memory of this process's Python descendants in MB, sampled every two seconds."""

    def __init__(self):
        self._most, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self):
        self._ended.set()
        self._thread.join()
        return self._most

    def _watch(self):
        while not self._ended.wait(2):
            self._most = max(self._most, resident())


if __name__ == "__main__":
    main()
