"""Measures the driver's control plane with simulated agents: how long thousands take to meet, and what they cost.

    .venv/bin/python benchmarks/control_plane.py --agents 64 256 1024 4096

The driver is the library's own: channel, event loop of a launch, console. The agents are the library's own end of the
channel, many of them in one process, without Spark and without trainers. Everything goes over loopback and runs on the
same cores. The simulation takes most of their time, so the results are upper bounds. Agents connect a few at a time,
and authenticate every message. A message to all agents is decoded only once, because in a cluster each agent would
decode it on its own machine.

- ``meet``: from the first connection until every agent has the addresses of all. ``driver`` is the driver's CPU time in
  seconds, ``told`` the number of bytes that each agent receives for this.
- ``balance``: from the first report on rows until every agent knows its transfers. ``told`` is as above.
- ``idle``: the number of CPUs that the driver uses for heartbeats.
- ``lines``: from the first line until the last has been printed to a file; 1,000 lines from each of up to 256 agents.
- ``stop``: from a failure until every agent has been told to stop, including the second in which the driver waits for
  other failures.
- ``memory``: the increase of the driver's resident memory.
"""

import argparse
import functools
import json
import os
import random
import resource
import selectors
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "src"))

from spark_tensorflow_distributor.process_group.spec import Member  # noqa: E402
from spark_tensorflow_distributor.runtime.agent import link as agent_link  # noqa: E402
from spark_tensorflow_distributor.runtime.agent.link import DriverLink  # noqa: E402
from spark_tensorflow_distributor.runtime.agent.rendezvous import MemberFacts  # noqa: E402
from spark_tensorflow_distributor.runtime.driver.callbacks import CallbackList  # noqa: E402
from spark_tensorflow_distributor.runtime.driver.channel import Channel  # noqa: E402
from spark_tensorflow_distributor.runtime.driver.console import Console  # noqa: E402
from spark_tensorflow_distributor.runtime.driver.control import RunControl  # noqa: E402
from spark_tensorflow_distributor.runtime.driver.epochs import EpochEvents  # noqa: E402
from spark_tensorflow_distributor.runtime.driver.launch import Launch  # noqa: E402
from spark_tensorflow_distributor.runtime.driver.report import RunReport  # noqa: E402
from spark_tensorflow_distributor.runtime.failures import Failure  # noqa: E402
from spark_tensorflow_distributor.runtime.specs import heartbeat_seconds, line_window  # noqa: E402
from spark_tensorflow_distributor.runtime.wire import encode  # noqa: E402

SECRET = b"s" * 32
LINES = 1000
PRINTING = 256
CONNECTING = 8  # agents at a time
COLUMNS = (
    "agents",
    "meet s",
    "driver s",
    "told",
    "balance s",
    "told",
    "idle CPUs",
    "lines s",
    "lost",
    "stop s",
    "memory MB",
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--columns", type=int, default=100, help="of the DataFrame whose shards are balanced")
    parser.add_argument("--idle", type=float, default=10.0, help="seconds to be idle")
    parser.add_argument("--simulate", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.simulate is not None:
        Simulation(**options.simulate).serve()
        return
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    for count in options.agents:
        # A separate process for each size, so that none reuses the memory of another.
        if (pid := os.fork()) == 0:
            print("| " + " | ".join(map(str, measure(count, options))) + " |", flush=True)
            os._exit(0)
        os.waitpid(pid, 0)


class Job:
    """Stands in for the Spark job, which ends when the simulation does."""

    rows, error, is_alive = (), None, False

    def start(self, on_end):
        self.end = on_end

    def join(self, seconds):
        pass

    def cancel(self):
        pass


class Printed:
    """A terminal that discards the text and counts its lines."""

    encoding = "utf-8"

    def __init__(self):
        self.lines = 0
        self._file = open(os.devnull, "w")  # noqa: SIM115 (open as long as the process)

    def write(self, text):
        self.lines += text.count("\n")
        self._file.write(text)

    def flush(self):
        self._file.flush()


def measure(count, options):
    """Measure one size; return a row of the table."""
    memory = resident()
    terminal, printed = sys.stdout, Printed()
    spec = SimpleNamespace(
        world_size=count,
        frames=(),
        config=SimpleNamespace(start_timeout=600),
        plan=SimpleNamespace(uses_sockets=True),
    )
    with closing(Channel(SECRET, "127.0.0.1", ("127.0.0.1",), world_size=count)) as channel:
        job = Job()
        console = Console(show_lines=True, show_progress=False)
        launch = Launch(
            spec, channel, console, None, EpochEvents(RunReport(count, count), 0, CallbackList(), RunControl())
        )
        sys.stdout = printed
        thread = threading.Thread(target=launch.run, args=(job,))
        thread.start()
        agents = Agents(channel.addresses[0], count, options.columns)
        used = time.process_time()
        met = agents.order("meet")
        used = time.process_time() - used
        balanced = agents.order("balance")
        began, idle = time.monotonic(), time.process_time()
        agents.order("idle", seconds=options.idle)
        idle = (time.process_time() - idle) / (time.monotonic() - began)
        began, expected = time.monotonic(), LINES * min(PRINTING, count)
        agents.order("print")
        while printed.lines < expected and time.monotonic() - began < 60:
            time.sleep(0.01)
        lines = time.monotonic() - began
        stopped = agents.order("stop")
        grown = resident() - memory
        agents.order("end")
        job.end()
        thread.join()
    sys.stdout = terminal
    return (
        count, f"{met['seconds']:.2f}", f"{used:.2f}", size(met["told"]), f"{balanced['seconds']:.2f}",
        size(balanced["told"]), f"{idle:.3f}", f"{lines:.2f}", expected - printed.lines, f"{stopped['seconds']:.2f}",
        f"{grown / 2**20:.0f}",
    )  # fmt: skip


def size(count):
    return f"{count / 1000:.1f} kB"


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


class Agents:
    """The process of the simulated agents, as the driver's process sees it."""

    def __init__(self, address, count, columns):
        start = json.dumps({"address": address, "count": count, "columns": columns})
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--simulate", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def order(self, name, **details):
        """Have the agents do something; return their answer."""
        self._process.stdin.write(json.dumps({"name": name, **details}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class Simulation:
    """Agents that share a process and an event loop."""

    def __init__(self, address, count, columns):
        agent_link.decode = functools.lru_cache(64)(agent_link.decode)
        self._columns = columns
        self._links = [
            DriverLink(
                [tuple(address)],
                SECRET,
                {"type": "hello", "rank": rank, "host": f"executor-{rank // 8}.cluster.example"},
                window=line_window(count),
                heartbeat_seconds=heartbeat_seconds(count),
            )
            for rank in range(count)
        ]
        self._selector = selectors.DefaultSelector()
        self._next_beat = 0.0
        self._got = {}  # by type of message, the ranks that have received one
        self._told = {}  # by type of message, the size of the last one

    def serve(self):
        """Carry out the orders of the driver's process, one per line."""
        for line in sys.stdin:
            order = json.loads(line)
            began = time.monotonic()
            told = getattr(self, "_" + order.pop("name"))(**order)
            print(json.dumps({"seconds": time.monotonic() - began, "told": told}), flush=True)

    def _meet(self):
        pool = ThreadPoolExecutor(CONNECTING)  # connecting is mostly waiting for the driver
        for rank, (link, is_connected) in enumerate(
            zip(self._links, pool.map(DriverLink.connect, self._links), strict=True)
        ):
            if not is_connected:
                raise RuntimeError(f"agent {rank} could not connect")
            self._selector.register(link, selectors.EVENT_READ, rank)
            host, name = f"10.0.{rank // 2048}.{rank // 8 % 256}", f"{random.randrange(1 << 40):012x}"
            listener = Member(host, random.randrange(32768, 61000), f"{rank // 8:016x}", name)
            member = asdict(MemberFacts(rank, f"executor-{rank // 8}.cluster.example", "2.21.0", listener))
            link.send({"type": "join", "member": member})
            self._look(0.0)
        self._wait_for("members")
        return self._told["members"]

    def _balance(self):
        column = {"nulls": 3, "inner_nulls": 0, "nans": 0, "lengths": [[1, 12]]}
        for link in self._links:
            facts = [{"rows": 1_000_000 + random.randrange(-2, 3), "columns": [column] * self._columns}]
            link.send({"type": "rows", "facts": facts})
            self._look(0.0)
        self._wait_for("facts")
        self._wait_for("transfers")
        return self._told["facts"] + self._told["transfers"]

    def _idle(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._look(0.1)

    def _print(self):
        lines = [
            f"Epoch 1/10, step {number}: loss 0.693{number}, accuracy 0.5, and some more text"
            for number in range(LINES)
        ]
        printing = self._links[:PRINTING]
        for link in printing:
            link.send_lines("stdout", lines)
        while any(link._lines or link.has_unsent for link in printing):
            self._look(0.01)
            for link in printing:
                link.flush()
        return sum(link.dropped_lines for link in printing)

    def _stop(self):
        failure = Failure(1, "executor-0.cluster.example", "exception", "ValueError: wrong", "ValueError").to_json()
        self._links[1].send({"type": "failed", "failure": failure})
        self._wait_for("stop")

    def _end(self):
        for link in self._links:
            link.close(0)

    def _wait_for(self, kind):
        while len(self._got.get(kind, ())) < len(self._links):
            self._look(0.1)

    def _look(self, seconds):
        for key, _ in self._selector.select(seconds):
            for message in key.fileobj.receive():
                self._got.setdefault(message["type"], set()).add(key.data)
                if message["type"] not in self._told:
                    self._told[message["type"]] = len(encode(message))
            if not key.fileobj.is_open:
                raise RuntimeError(f"agent {key.data} lost its connection")
        if time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + 0.25
            for link in self._links:
                link.send_heartbeat(state="running", cpu=12.5)


if __name__ == "__main__":
    main()
