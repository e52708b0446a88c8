"""Measures start-up time: ``run(lambda: 1)``, first and repeated, with ours and 1.0.0.

    .venv/bin/python benchmarks/launch.py --slots 2 8 --rounds 3

Each round starts one driver process per system, in turn, so that a change in the machine's speed affects all of
them. Each process starts a Spark session and runs one warm-up job (so that Spark's own start-up is excluded), the first
run, and the repeated runs. ``floor`` is the same barrier job without TensorFlow. 1.0.0 is installed from PyPI into a
separate folder and runs with tf_keras, on the same Python, PySpark and TensorFlow.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from drivers import install_peer, measure, print_result

SYSTEMS = ("ours", "cold", "1.0.0", "floor")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, nargs="+", default=[2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=4, help="runs after the first, per round")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--as", dest="role", choices=SYSTEMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        drive(options.role, options.slots[0], options.repeats)
        return
    install_peer()
    for slots in options.slots:
        measured = {system: {"first": [], "repeated": [], "rss": []} for system in options.systems}
        for number in range(options.rounds):
            for system in options.systems:
                result = measure(__file__, system, "--slots", slots, "--repeats", options.repeats)
                measured[system]["first"].append(result["first"])
                measured[system]["repeated"] += result["repeated"]
                measured[system]["rss"].append(result["rss"])
                print(f"# slots {slots} round {number + 1} {system}: {json.dumps(result)}", file=sys.stderr)
        show(slots, measured)


def drive(system, slots, repeats):
    """Run the driver process of one system; report the seconds of its first and repeated runs."""
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master(f"local[{slots}]").config("spark.ui.enabled", "false")
    if system == "cold":
        builder = builder.config("tensorflow.spark.distributor.warmStart", "false")
    spark = builder.getOrCreate()

    def bare(batches):
        import pyarrow as pa

        for _ in batches:
            pass
        yield pa.RecordBatch.from_pydict({"value": [1]}, schema=pa.schema([("value", pa.int64())]))

    def barrier_job():
        spark.range(0, slots, 1, slots).mapInArrow(bare, "value long", barrier=True).collect()

    barrier_job()  # excludes the start of Spark and its Python workers
    if system == "floor":
        run = barrier_job
    else:
        from spark_tensorflow_distributor import MirroredStrategyRunner

        runner = MirroredStrategyRunner(num_slots=slots, use_gpu=False)

        def run():
            assert runner.run(lambda: 1) == 1

    seconds = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        run()
        seconds.append(round(time.perf_counter() - started, 3))
        time.sleep(0.3)
    print_result({"first": seconds[0], "repeated": seconds[1:], "rss": resident()})
    spark.stop()


def resident():
    """Return the proportional set size of this driver's Python descendants in MB: the memory kept between runs."""
    total = 0
    for pid in descendants(os.getpid()):
        try:
            if "python" in os.readlink(f"/proc/{pid}/exe"):
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        except OSError:
            continue
    return round(total / 1000)


def descendants(pid):
    """Return all descendants of ``pid``, including those in separate sessions."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout.split()
    pairs = list(zip(map(int, listing[::2]), map(int, listing[1::2]), strict=True))
    found, grown = {pid}, True
    while grown:
        new = {child for child, parent in pairs if parent in found} - found
        found, grown = found | new, bool(new)
    return found - {pid}


def show(slots, measured):
    print(f"\n{slots} slots on {os.cpu_count()} cores; seconds, median (minimum to maximum); ratio to 1.0.0")
    base = measured.get("1.0.0")
    for system, numbers in measured.items():
        cells = []
        for kind in ("first", "repeated"):
            values = numbers[kind]
            middle = statistics.median(values)
            ratio = f" {middle / statistics.median(base[kind]):.2f}x" if base else ""
            cells.append(f"{kind} {middle:6.2f} ({min(values):.2f} to {max(values):.2f}){ratio}")
        print(f"  {system:6} {'   '.join(cells)}   memory between runs {statistics.median(numbers['rss']):.0f} MB")


if __name__ == "__main__":
    main()
