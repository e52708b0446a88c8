"""Measures an all-reduce by size: ours, TensorFlow's collectives, and the lower bound of loopback TCP.

    .venv/bin/python benchmarks/allreduce.py --workers 2 4 8
    .venv/bin/python benchmarks/allreduce.py --workers 3 --gbit 1 --delay 1 --kinds sockets tensorflow loopback

A model has many gradients; here they are ``--tensors`` tensors of equal size, summed in a ``tf.function``. The systems
take turns in each round, in processes of one machine. With ``--gbit``, each process has its own host: a network
namespace that sends at most that many Gbit/s.

- ``memory``: ours between workers of one machine, which share memory.
- ``sockets``: ours between workers of different machines, here over loopback TCP; ``bfloat16`` is the same with
  ``gradient_compression``. ``integrity`` and ``privacy`` are the same with ``tensorflow.spark.distributor.protection``.
- ``tensorflow``: TensorFlow's collectives over gRPC, packed in the same way.
- ``loopback``: each process sends all its bytes to a neighbour over TCP and adds what it receives. For two processes
  this is the minimum that any all-reduce over TCP needs.
"""

import argparse
import contextlib
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from network import inside, limited_hosts

HERE = Path(__file__).parent
SIZES = (4, 1 << 10, 1 << 16, 1 << 20, 4 << 20, 16 << 20, 64 << 20, 102 << 20)
KINDS = ("memory", "sockets", "bfloat16", "tensorflow", "loopback")
# For each kind: the name of the machine, empty if each worker has its own; and the protection between machines.
GROUPS = {
    "memory": ("one machine", "light"),
    "sockets": ("", "light"),
    "bfloat16": ("", "light"),
    "integrity": ("", "integrity"),
    "privacy": ("", "privacy"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--tensors", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=[*KINDS, "integrity", "privacy"])
    parser.add_argument("--gbit", type=float, help="bandwidth of each worker's host; default: all on one host")
    parser.add_argument("--delay", type=float, default=0.0, help="ms from one host to another; with --gbit")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="in bytes")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--wiring", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.delay and options.gbit is None:
        parser.error("--delay needs --gbit")
    if options.rank is not None:
        work(options)
        return
    for workers in options.workers:
        hosts = contextlib.nullcontext([("", "127.0.0.1")] * workers)
        limited = None if options.gbit is None else limited_hosts(workers, options.gbit, options.delay / 1000)
        with limited or hosts as found:
            if start(found):
                sys.exit(f"{workers} workers failed")


def start(hosts):
    """Start a process on each host, given by name and address; return the worst exit status."""
    with contextlib.ExitStack() as held:

        def server(host):
            name, address = host
            with inside(name):
                return held.enter_context(socket.create_server((address, 0)))

        groups = {}
        for kind, (machine, _) in GROUPS.items():
            members, listeners = [], []
            for host in hosts:
                remote = server(host)
                local = held.enter_context(socket.socket(socket.AF_UNIX))
                local.bind("")
                local.listen()
                members.append([host[1], remote.getsockname()[1], machine, local.getsockname().hex()])
                listeners.append([remote.fileno(), local.fileno()])
            groups[kind] = {"members": members, "listeners": listeners, "secret": secrets.token_hex(32)}
        rings = [server(host) for host in hosts]
        wiring = {"groups": groups, "ring": [[each.fileno(), *each.getsockname()] for each in rings]}
        cluster = {"worker": [f"{address}:{free_port(name, address)}" for name, address in hosts]}
        descriptors = [fd for group in groups.values() for pair in group["listeners"] for fd in pair]
        descriptors += [each.fileno() for each in rings]
        processes = []
        for rank, (name, _) in enumerate(hosts):
            task = {"type": "worker", "index": rank}
            env = {**os.environ, "TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}
            env.update(PYTHONPATH=str(HERE.parent / "src"), TF_CPP_MIN_LOG_LEVEL="2", CUDA_VISIBLE_DEVICES="-1")
            place = ["ip", "netns", "exec", name] if name else []
            command = [*place, sys.executable, *sys.argv, "--rank", str(rank), "--wiring", json.dumps(wiring)]
            quiet = None if os.environ.get("VERBOSE") else subprocess.DEVNULL
            processes.append(subprocess.Popen(command, env=env, stderr=quiet, pass_fds=descriptors))
    return max(process.wait() for process in processes)


def free_port(name, address):
    with inside(name), socket.socket() as sock:
        sock.bind((address, 0))
        return sock.getsockname()[1]


def work(options):
    """Run one of the processes; rank 0 prints the results."""
    import tensorflow as tf

    from spark_tensorflow_distributor.process_group.group import ProcessGroup
    from spark_tensorflow_distributor.process_group.spec import GroupSpec, Member
    from spark_tensorflow_distributor.training.socket_collectives import SocketCollectives
    from spark_tensorflow_distributor.training.tf_collectives import TensorFlowCollectives

    rank, wiring = options.rank, options.wiring
    workers = len(wiring["ring"])
    tf.config.threading.set_intra_op_parallelism_threads(max(1, os.cpu_count() // workers))
    tf.config.threading.set_inter_op_parallelism_threads(4)
    engines = {}
    if "tensorflow" in options.kinds:
        engines["tensorflow"] = TensorFlowCollectives(tf.distribute.MultiWorkerMirroredStrategy())
    for kind, wires in wiring["groups"].items():
        if kind in options.kinds:
            members = tuple(Member(*each) for each in wires["members"])
            remote, local = (socket.socket(fileno=fd) for fd in wires["listeners"][rank])
            spec = GroupSpec(rank, members, wires["secret"], protection=GROUPS[kind][1])
            group = ProcessGroup.form(spec, remote, local, 120)
            engines[kind] = SocketCollectives(group, "bfloat16" if kind == "bfloat16" else None)
    neighbours = Neighbours(rank, wiring["ring"])
    if rank == 0:
        print(f"{workers} workers, {os.cpu_count()} cores; ms per sum, median (ratio to loopback)")
        print(f"{'bytes':>12} {'tensors':>8}" + "".join(f"{kind:>18}" for kind in options.kinds))
    for size in SIZES:
        if size <= options.largest:
            count = max(1, min(options.tensors, size // 1024))
            parts = [tf.ones([max(1, size // 4 // count)]) for _ in range(count)]
            sums = {kind: summing(engines[kind], parts) for kind in options.kinds if kind != "loopback"}
            sums["loopback"] = lambda size=size: neighbours.add(size)
            show(measure(sums, options), size, count, options)
    sys.stdout.flush()
    os._exit(0)


def summing(engine, parts):
    import tensorflow as tf

    @tf.function
    def all_reduce():
        return engine.all_reduce_packed(parts, compress=True)

    return all_reduce


def measure(sums, options):
    """Return the milliseconds of each round, by system."""
    times = {kind: [] for kind in options.kinds}
    for number in range(options.rounds + 2):
        for kind in options.kinds:
            begun = time.perf_counter()
            sums[kind]()
            if number > 1:  # the first two trace and connect
                times[kind].append(1000 * (time.perf_counter() - begun))
    return times


def show(times, size, count, options):
    if options.rank == 0:
        medians = {kind: statistics.median(each) for kind, each in times.items()}
        least = medians.get("loopback")
        cells = [f"{each:.2f}" + (f" ({each / least:.1f}x)" if least else "") for each in medians.values()]
        print(f"{size:>12} {count:>8}" + "".join(f"{cell:>18}" for cell in cells), flush=True)


class Neighbours:
    """A ring of sockets, in which each process sends to the next one and receives from the previous one."""

    def __init__(self, rank, ring):
        import numpy as np

        self._np = np
        server = socket.socket(fileno=ring[rank][0])
        self._next = socket.create_connection(tuple(ring[(rank + 1) % len(ring)][1:]))
        self._previous, _ = server.accept()
        for each in (self._next, self._previous):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def add(self, size):
        own = self._np.ones(max(1, size // 4), "float32")
        received = self._np.empty_like(own)
        sender = threading.Thread(target=self._next.sendall, args=(own.data.cast("B"),))
        sender.start()
        view = memoryview(received).cast("B")
        while view:
            view = view[self._previous.recv_into(view) :]
        own += received
        sender.join()


if __name__ == "__main__":
    main()
