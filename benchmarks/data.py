"""Measures how fast the rows of a Spark DataFrame reach TensorFlow on two workers, with ours and with other systems.

    .venv/bin/python benchmarks/data.py
    .venv/bin/python benchmarks/data.py --systems ours --data tabular --rows 500000 1000000 4000000

Two data sets, ``tabular`` (20 float32 columns and an int64 label, 88 bytes per row) and ``images`` (an array of 784
float32 and a label, 3,144 bytes), both read by Spark from eight equal Parquet files. Each system reads them in a
separate driver process: first cold, with workers that have to start, and then warm. Measured in the workers:

- first: seconds from the call to the end of the first epoch, including the hand-off of all rows.
- later: rows per second in later, shuffled epochs, in batches of 1,024 on each of two workers, without a model.
- memory of a worker: anonymous memory before the first batch and at its peak, and the peak of all resident memory,
  which includes mapped files that Linux can reclaim.

Ours, cold, includes starting the fork server and importing TensorFlow; the others also import it when cold, while Spark
hands off the rows. ``floor`` is Spark alone: a barrier job of two tasks that read the rows as Arrow and drop them. Slow
systems get fewer rows. Petastorm is installed from PyPI into a separate environment, with the newest compatible
pyarrow; the others are in peers.py.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from pathlib import Path

from drivers import parse_result, print_result
from peers import BATCH, PEERS, WORKERS

HERE = Path(__file__).parent
PETASTORM = HERE / ".peers" / "petastorm"
# pyarrow 15 dropped the ParquetDataset that petastorm is built on, and pyarrow 14 needs numpy below 2.
PINS = ["petastorm==0.13.1", "pyarrow==14.0.2", "numpy<2", "pandas<3", "pyspark==3.5.8", "tensorflow-cpu==2.21.0"]
SOURCES = HERE.parent / "build" / "benchmark-data"
SYSTEMS = ("ours", *PEERS, "floor")
BYTES = {"tabular": 20 * 4 + 8, "images": 784 * 4 + 8}
ROWS = {"tabular": 1_000_000, "images": 60_000}
MOST = {
    ("petastorm", "tabular"): 250_000,
    ("petastorm", "images"): 30_000,
    ("tfrecord", "tabular"): 100_000,
    ("tfrecord", "images"): 20_000,
    ("queue", "tabular"): 15_000,
    ("queue", "images"): 3_000,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--data", nargs="+", default=list(BYTES), choices=list(BYTES))
    parser.add_argument("--rows", type=int, nargs="+", help="default: 1,000,000 and 60,000")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3, help="warm runs per driver process")
    parser.add_argument("--rounds", type=int, default=1, help="driver processes for each system, in turn")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for each driver process")
    parser.add_argument("--as", dest="role", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role and options.role.startswith("worker"):
        work(options.systems[0], int(options.role[6:]), options.folder, options.epochs)
    elif options.role == "source":
        write_source(options.data[0], options.rows[0])
    elif options.role:
        drive(options.role, options.data[0], options.rows[0], options.epochs, options.repeats)
    else:
        compare(options)


def compare(options):
    if "petastorm" in options.systems and not PETASTORM.exists():
        venv.create(PETASTORM, with_pip=True)
        subprocess.run([python("petastorm"), "-m", "pip", "install", "-q", *PINS], check=True)
    for data in options.data:
        measured = {}
        for _ in range(options.rounds):
            for asked in options.rows or [ROWS[data]]:
                for system in options.systems:
                    rows = min(asked, MOST.get((system, data), asked))
                    if not source(data, rows).exists():
                        call("source", data, rows, options)
                    result = call(system, data, rows, options)
                    print(f"# {system} {data} {rows}: {json.dumps(result)}", file=sys.stderr, flush=True)
                    measured.setdefault((system, rows), []).append(result)
        show(data, measured)


def call(role, data, rows, options):
    """Return the measurements of one driver process, the cold run first; or the failure as a string."""
    path = os.pathsep.join([str(HERE), *([] if role == "petastorm" else [str(HERE.parent / "src")])])
    env = {
        **os.environ,
        "PYTHONPATH": path,
        "PYSPARK_PYTHON": python(role),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "PYTHONWARNINGS": "ignore",  # petastorm warns for every batch
    }
    command = [python(role), __file__, "--as", role, "--data", data, "--rows", str(rows)]
    # The output goes to a file: a pipe would be held open by any process that outlives the driver.
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [*command, "--epochs", str(options.epochs), "--repeats", str(options.repeats)],
            stdout=output,
            stderr=output,
            env=env,
            start_new_session=True,
        )
        try:
            process.wait(options.timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"not finished after {options.timeout} s"
        output.seek(0)
        text = output.read()
    if (found := parse_result(text)) is not None:
        return found
    print(text[-4000:], file=sys.stderr)
    return f"failed with exit code {process.returncode}"


def python(system):
    return str(PETASTORM / "bin" / "python") if system == "petastorm" else sys.executable


def source(data, rows):
    return SOURCES / f"{data}-{rows}"


def session():
    from pyspark.sql import SparkSession

    return (
        SparkSession.builder.master(f"local[{WORKERS}]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.memory", "3g")
        .config("spark.sql.files.openCostInBytes", 1 << 30)  # a partition for each file
        .getOrCreate()
    )


def write_source(data, rows):
    from pyspark.sql import functions as F

    spark = session()
    ids = spark.range(0, rows, 1, 8)
    label = (F.col("id") % 10).alias("label")
    if data == "tabular":
        df = ids.select(*[F.rand(seed).cast("float").alias(f"f{seed}") for seed in range(20)], label)
    else:
        pixel = F.sequence(F.lit(1), F.lit(784))
        image = F.transform(pixel, lambda place: (F.hash("id", place).bitwiseAND(255) / 255).cast("float"))
        df = ids.select(image.alias("image"), label)
    df.write.mode("overwrite").parquet(f"{source(data, rows)}.part")
    Path(f"{source(data, rows)}.part").rename(source(data, rows))
    print_result("written")


def drive(system, data, rows, epochs, repeats):
    """Run the driver process of one system."""
    spark = session()
    spark.sparkContext.setLogLevel("ERROR")
    df = spark.read.parquet(str(source(data, rows)))
    df.write.format("noop").mode("overwrite").save()  # so that no system pays for the first read of the source
    peer = PEERS[system]() if system in PEERS else None
    spark.range(0, WORKERS, 1, WORKERS).mapInArrow(warm(peer), "value long").collect()
    runs = []
    for kind in ["cold"] + ["warm"] * repeats:
        if system == "floor":
            runs.append(drain(df))
        elif system == "ours":
            runs.append(run_ours(spark, df, epochs))
        else:
            runs.append(run_peer(system, peer, df, data, epochs, kind))
    print_result(runs)
    spark.stop()


def warm(peer):
    def touch(batches):
        if peer:
            peer.warm_up()
        yield from batches

    return touch


def drain(df):
    def drop(batches):
        import pyarrow as pa

        rows = sum(batch.num_rows for batch in batches)
        yield pa.RecordBatch.from_pydict({"rows": [rows]})

    started = time.time()
    counted = df.repartition(WORKERS).mapInArrow(drop, "rows long", barrier=True).collect()
    return {"first": time.time() - started, "epochs": [], "rows": [sum(row.rows for row in counted)], "memory": []}


def run_ours(spark, df, epochs):
    from spark_tensorflow_distributor import MirroredStrategyRunner

    def train(data, features, epochs):
        stack = isinstance(features, list)
        dataset = data.to_tf(features, "label", batch_size=WORKERS * BATCH, stack=stack)
        return walk(lambda epoch: dataset, epochs)

    features = df.columns[:-1]
    runner = MirroredStrategyRunner(num_slots=WORKERS, use_gpu=False, spark=spark, progress=False)
    started = time.time()
    measured = runner.run(train, data=df, features=features if len(features) > 1 else features[0], epochs=epochs)
    # The result is rank 0's; both workers have the same number of rows.
    return result([{**measured, "rows": [WORKERS * rows for rows in measured["rows"]]}], started)


def run_peer(system, peer, df, data, epochs, kind):
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--systems", system, "--folder", folder, "--epochs", str(epochs)]
        started = time.time()
        workers = [
            subprocess.Popen(
                [*command, "--as", f"worker{rank}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for rank in range(WORKERS)
        ]
        if kind == "warm":
            await_ready(workers)
            started = time.time()
        handed = peer.hand_off(df, 784 if data == "images" else 20, folder)
        if kind == "cold":
            await_ready(workers)
        for worker in workers:
            print(json.dumps(handed), file=worker.stdin, flush=True)
        peer.feed(df, folder, epochs)
        parts = [json.loads(answer(worker)) for worker in workers]
        for worker in workers:
            worker.wait()
        return result(parts, started)


def await_ready(workers):
    for worker in workers:
        answer(worker)


def answer(worker):
    for line in worker.stdout:
        if line.startswith("WORKER "):
            return line[7:]
    raise SystemExit(f"A worker ended with exit code {worker.wait()}")


def work(system, rank, folder, epochs):
    """Run a worker process of a peer."""
    peer = PEERS[system]()
    peer.start(folder, rank)
    import tensorflow as tf

    tf.constant(0)
    print("WORKER ready", flush=True)
    handed = json.loads(sys.stdin.readline())
    print("WORKER " + json.dumps(walk(lambda epoch: peer.batches(handed, rank, epoch), epochs)), flush=True)


def walk(batches, epochs):
    """Read all epochs; return when each began and ended, its rows, and the memory of the process."""
    import tensorflow as tf

    def memory(*names):
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return [int(fields[name].split()[0]) / 1000 for name in names]

    def watch():
        while not done.wait(0.02):
            samples.extend(memory("RssAnon"))

    samples = memory("RssAnon")
    done = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    starts, ends, rows = [], [], []
    for epoch in range(epochs):
        starts.append(time.time())
        count, total = 0, tf.constant(0.0)
        for features, labels in batches(epoch):
            total += tf.reduce_sum(features)
            count += labels.shape[0]
        total.numpy()
        ends.append(time.time())
        rows.append(count)
    done.set()
    watcher.join()
    peak = memory("VmHWM")[0]
    return {"starts": starts, "ends": ends, "rows": rows, "memory": [samples[0], max(samples), peak]}


def result(parts, started):
    """Combine all workers: an epoch ends with the slowest worker, and the largest memory counts."""
    epochs = range(len(parts[0]["ends"]))
    seconds = [max(p["ends"][epoch] - p["starts"][epoch] for p in parts) for epoch in epochs]
    rows = [sum(p["rows"][epoch] for p in parts) for epoch in epochs]
    largest = max((p["memory"] for p in parts), key=lambda memory: memory[1] - memory[0])
    first = max(p["ends"][0] for p in parts) - started
    return {"first": first, "epochs": seconds, "rows": rows, "memory": largest}


def show(data, measured):
    print(
        f"\n{data}, {BYTES[data]} bytes per row, {WORKERS} workers on {os.cpu_count()} cores; medians, ratios to ours"
    )
    print(f"  {'':9} {'rows':>9} {'cold s':>7} {'first s':>8} {'rows/s':>9} {'MB/s':>6} {'':>7}", end="")
    print(f" {'later rows/s':>13} {'MB/s':>6} {'':>7}   anonymous MB: before, peak   resident MB, peak")
    rates = {key: rates_of(key[1], results) for key, results in measured.items()}
    ours = next((rate for (system, _), rate in rates.items() if system == "ours" and rate), None)
    for (system, rows), results in measured.items():
        rate = rates[system, rows]
        if not rate:
            print(f"  {system:9} {rows:9} {'; '.join(map(str, results))}")
            continue
        line = f"  {system:9} {rows:9} {rate['cold']:7.2f} {rate['warm']:8.2f}"
        for kind in ("first", "later"):
            if rate[kind] is None:
                continue
            ratio = f"{rate[kind] / ours[kind]:.3f}x" if ours else ""
            width = 9 if kind == "first" else 13
            line += f" {rate[kind]:{width}.0f} {rate[kind] * BYTES[data] / 1e6:6.1f} {ratio:>7}"
        if rate["memory"]:
            before, peak, resident = rate["memory"]
            line += f"   {before:13.0f} {peak:13.0f} {resident:19.0f}"
        print(line + rate["missing"])


def rates_of(rows, results):
    """Return the medians over all successful runs of all rounds; None if all failed."""
    good = [runs for runs in results if isinstance(runs, list)]
    if not good:
        return None
    warm = [run for runs in good for run in runs[1:]]
    later = [rows / seconds for run in warm for seconds in run["epochs"][1:]]
    short = [count for runs in good for run in runs for count in run["rows"] if count != rows]
    return {
        "cold": statistics.median(runs[0]["first"] for runs in good),
        "warm": statistics.median(run["first"] for run in warm),
        "first": rows / statistics.median(run["first"] for run in warm),
        "later": statistics.median(later) if later else None,
        "memory": [statistics.median(values) for values in zip(*(run["memory"] for run in warm), strict=True)],
        "missing": f"   epochs with other numbers of rows: {short}" if short else "",
    }


if __name__ == "__main__":
    main()
