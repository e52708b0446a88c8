"""How long a sum over the workers takes, by its size: ours, plain collectives of TensorFlow, and what loopback allows.

    .venv/bin/python benchmarks/allreduce.py --workers 2

Gradients of a model come as many tensors: here as ``--tensors`` of equal size. ``packed`` is how ours sums them;
``plain`` sums each by itself, as a custom loop with ``strategy.reduce`` does; ``one`` is a single tensor of the whole
size, the least that TensorFlow takes. ``loopback`` is what a sum of that size costs two processes at the least: each
sends all its bytes to a neighbour over TCP and adds what it receives. In each round all take turns.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
SIZES = (4, 1 << 10, 1 << 16, 1 << 20, 4 << 20, 16 << 20, 64 << 20)
KINDS = ("packed", "plain", "one", "loopback")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--tensors", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ports", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank is not None:
        work(options)
        return
    held = [socket.socket() for _ in range(2 * options.workers)]
    for each in held:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports[: options.workers]]}
    processes = []
    for rank in range(options.workers):
        task = {"type": "worker", "index": rank}
        env = {**os.environ, "TF_CONFIG": json.dumps({"cluster": cluster, "task": task}), "CUDA_VISIBLE_DEVICES": "-1"}
        env.update(PYTHONPATH=str(HERE.parent / "src"), TF_CPP_MIN_LOG_LEVEL="2")
        command = [sys.executable, *sys.argv, "--rank", str(rank), "--ports", json.dumps(ports[options.workers :])]
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL))
    sys.exit(max(process.wait() for process in processes))


def work(options):
    """One of the processes; rank 0 prints."""
    import tensorflow as tf

    from spark_tensorflow_distributor.training import patches
    from spark_tensorflow_distributor.training.patches.gradients import summed_gradients

    patches.patch_tensorflow()
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    neighbours = Neighbours(options.rank, options.ports)
    if options.rank == 0:
        print(f"{options.workers} workers, {os.cpu_count()} cores; ms a sum, median (ratio to loopback)")
        print(f"{'bytes':>12} {'tensors':>8}" + "".join(f"{kind:>20}" for kind in KINDS))
    for size in SIZES:
        count = max(1, min(options.tensors, size // 4))
        parts = [tf.ones([max(1, size // 4 // count)]) for _ in range(count)]
        whole = tf.ones([max(1, size // 4)])

        @tf.function
        def packed(parts=parts):
            def of_replica():
                return summed_gradients(tf.distribute.get_replica_context(), parts, parts)

            return strategy.run(of_replica)

        @tf.function
        def plain(parts=parts):
            return [strategy.reduce("SUM", part, axis=None) for part in parts]

        @tf.function
        def one(whole=whole):
            return strategy.reduce("SUM", whole, axis=None)

        sums = {"packed": packed, "plain": plain, "one": one, "loopback": lambda size=size: neighbours.add(size)}
        times = {kind: [] for kind in KINDS}
        for number in range(options.rounds + 2):
            for kind in KINDS:
                begun = time.perf_counter()
                sums[kind]()
                if number > 1:  # the first ones trace and connect
                    times[kind].append(1000 * (time.perf_counter() - begun))
        if options.rank == 0:
            least = statistics.median(times["loopback"])
            cells = [
                f"{statistics.median(each):.2f} ({statistics.median(each) / least:.1f}x)" for each in times.values()
            ]
            print(f"{size:>12} {count:>8}" + "".join(f"{cell:>20}" for cell in cells), flush=True)
    sys.stdout.flush()
    os._exit(0)


class Neighbours:
    """A ring of sockets, in which each process sends to the next one and receives from the one before."""

    def __init__(self, rank, ports):
        import numpy as np

        server = socket.create_server(("127.0.0.1", ports[rank]))
        self._np = np
        following = ports[(rank + 1) % len(ports)]
        while True:
            try:
                self._next = socket.create_connection(("127.0.0.1", following))
                break
            except OSError:
                time.sleep(0.05)
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
