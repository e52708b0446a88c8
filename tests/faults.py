"""Controls a driver on a host of the test cluster, and reads its workers' events; see ``programs/fault_driver.py``."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from helpers import QUICK_JVM, is_running, wait_until

ROOT = Path(__file__).resolve().parents[1]

CONF = {
    "spark.executor.extraJavaOptions": QUICK_JVM,
    "spark.executor.memory": "1g",
    "spark.executor.cores": "1",
    "spark.cores.max": "3",
    # ENGINE=tensorflow runs the matrix on TensorFlow's collectives, whose ports are then filtered and closed.
    "tensorflow.spark.distributor.collectives": os.environ.get("ENGINE", "auto"),
}

OPTIONS = {"max_restarts": 2, "checkpoint_every": "5 steps"}

# Time limit from the end of one worker to the end of the whole group, in seconds.
GROUP_ENDS = 5


class Driver:
    """A driver program on host 0, which starts runs on request."""

    def __init__(self, hosts, *words):
        self.hosts, self._words = hosts, words or ("serve",)
        self.lines = []
        self._results = queue.SimpleQueue()
        self._kept = {}
        self._count = 0
        self.process = None
        self.open()

    def open(self):
        """Start the program, unless it is running."""
        if self.process is not None:
            return
        settings = {"spark.master": self.hosts.master, "spark.driver.host": self.hosts.address(0), **CONF}
        program = str(ROOT / "tests" / "programs" / "fault_driver.py")
        self.process = subprocess.Popen(
            self.hosts.command(0, sys.executable, program, json.dumps(settings), *self._words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.hosts.environment(0),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if self._words == ("serve",):
            self.result(None, 120)

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("RESULT "):
                self._results.put(json.loads(line[7:]))

    def start(self, events, rows=None, id=None, **kwargs):
        """Start a run; see ``order_of``."""
        self._count += 1
        order = order_of(id or f"run{self._count}", events, rows, **kwargs)
        self._send(order)
        return order["id"]

    def _send(self, order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def result(self, id, seconds=100):
        """Wait for a run's outcome: half a minute, or several times that on a busy machine."""
        end = time.monotonic() + seconds
        while id not in self._kept:
            try:
                outcome = self._results.get(timeout=max(0.1, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{id} is not over after {seconds} s:\n{self.output()}") from None
            self._kept[outcome.get("id")] = outcome
        return self._kept.pop(id)

    def probe(self, slots, seconds=80):
        """Return how many slots a job gets at the same time."""
        self._count += 1
        self._send({"id": f"probe{self._count}", "probe": slots})
        return self.result(f"probe{self._count}", seconds)["slots"]

    def output(self, last=80):
        return "".join(self.lines[-last:])

    def kill(self):
        """Kill the driver's Python process and its JVM, as if its host had died."""
        self.hosts.kill_processes(0, "fault_driver")
        self.hosts.kill_processes(0, "SparkSubmit")

    def interrupt(self):
        """Send Ctrl-C to all of the driver's processes, as a terminal does."""
        for pid, line in self.hosts.pids(0, "fault_driver").items():
            if line.startswith(sys.executable):
                os.kill(pid, signal.SIGINT)

    def close(self):
        if self.process is None:
            return
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.hosts.kill_processes(0, "fault_driver")
            self.process.wait()
        self._reader.join(5)
        self.process.stdout.close()
        self.process = None


def order_of(id, events, rows=None, conf=None, **kwargs):
    """Return the request for a run.

    Args:
        id: The run's name.
        events: The folder for the run's events.
        rows: Seconds that each part of the DataFrame takes to arrive; None to train on arrays.
        conf: Spark's settings for this run.
        kwargs: Arguments of the runner or, by name, of the training function.
    """
    of_function = {"epochs", "watch", "pause", "faults", "value_kills", "dropout"}
    order = {
        "id": id,
        "options": {key: value for key, value in kwargs.items() if key not in of_function},
        "conf": conf or {},
        "kwargs": {"events": str(events), **{key: kwargs[key] for key in of_function & kwargs.keys()}},
    }
    if rows is not None:
        order["rows"] = rows
    return order


def wait_for(events, name, seconds=200):
    """Wait for an event, and return its text."""
    path, end = events / name, time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end:
            raise AssertionError(f"{name} did not happen in {seconds} s; there are {sorted(os.listdir(events))}")
        time.sleep(0.02)
    return path.read_text()


def weights(events):
    with np.load(events / "weights.npz") as file:
        return [file[name] for name in file.files]


def trainers(hosts):
    """Return the processes that fork servers have forked."""
    return {pid: host for host in (1, 2, 3) for pid in hosts.forked(host, "forkserver.main")}


def wait_until_free(hosts):
    def left():
        return {**trainers(hosts), **hosts.pids(0, "fault_driver.py")}

    wait_until(lambda: not left(), 20)
    return left()


def check_group_ends(events):
    """Check that all trainers of the first attempt end soon after the fault."""
    pids = [int(wait_for(events, f"began-0-{rank}")) for rank in range(3)]
    assert wait_until(lambda: not any(map(is_running, pids)), GROUP_ENDS), [pid for pid in pids if is_running(pid)]


def check_same(events, outcome, reference, **arguments):
    """Check that the run ended as if nothing had happened."""
    assert "error" not in outcome, f"{outcome['message']}\n{outcome['traceback']}"
    expected, history = reference(**arguments)
    for mine, theirs in zip(weights(events), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert outcome["history"].keys() == history.keys()
    for name, values in history.items():
        np.testing.assert_allclose(outcome["history"][name], values, atol=1e-4, err_msg=name)
