"""Where a worker stands in its group, what it finds on its host, and the environment of its trainer."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from ...context import WorkerContext
from ..devices import DEFAULT_ENV


def hosts_of(addresses: Sequence[str]) -> list[str]:
    """Return the hosts of Spark's ``host:port`` task addresses; an IPv6 host keeps its brackets."""
    return [address.rsplit(":", 1)[0] if ":" in address else address for address in addresses]


def worker_contexts(hosts: Sequence[str]) -> list[WorkerContext]:
    """Assign ranks; returns a context for each partition, in the order of the partitions. Pure.

    Spark assigns partitions to hosts in no particular order (A B B A). Ranks are assigned host by host, so that
    neighbours in the collective's ring share a host, and partition 0 stays rank 0: its value is what the run returns.

    Args:
        hosts: of each partition.
    """
    by_host: dict[str, list[int]] = {}
    for partition, host in enumerate(hosts):
        by_host.setdefault(host, []).append(partition)
    contexts: dict[int, WorkerContext] = {}
    for node_rank, partitions in enumerate(by_host.values()):
        for local_rank, partition in enumerate(partitions):
            contexts[partition] = WorkerContext(len(contexts), len(hosts), local_rank, len(partitions), node_rank)
    return [contexts[partition] for partition in range(len(hosts))]


def trainer_environment(
    base: Mapping[str, str],
    extra: Mapping[str, str],
    cluster: Mapping[str, Any],
    rank: int,
    gpus: tuple[str, ...],
    threads: int,
) -> dict[str, str]:
    """The trainer's environment. Pure; the Python worker's own, which Spark uses again, stays as it is.

    Args:
        base: the Python worker's environment.
        extra: the run's ``env``.
        cluster: TF_CONFIG's ``cluster``.
        rank: this worker's index in it.
        gpus: entries of CUDA_VISIBLE_DEVICES; empty hides all GPUs, as 1.0.0 did.
        threads: this worker's share of the host's cores.
    """
    env = {**DEFAULT_ENV, **base}
    env.pop("PYTHONHASHSEED", None)  # Spark's, for its own shuffles
    # Spark sets it to spark.task.cpus, usually 1, whatever the worker's share is.
    env["OMP_NUM_THREADS"] = str(threads)
    env.update(extra)
    env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    env["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})
    return env


def phase_seconds(
    submitted: float, started: float, own: Mapping[str, float], phases: Mapping[str, float], ended: float
) -> dict[str, float]:
    """How long each phase of a worker took, in seconds.

    ``start``: from the driver's submission to the agent's first line. ``meet``: until all addresses were known.
    ``import``: until TensorFlow was imported and set up. ``strategy``: until the strategy was built. ``data``: until
    the rows of the DataFrames were in, where there are any. ``train``: in the function. ``result``: pickling the value
    and waiting for the others.
    """
    marks = [("start", started), ("meet", own.get("met"))]
    marks += [("import", phases.get("strategy")), ("strategy", phases.get("data", phases.get("train")))]
    marks += [("data", phases.get("train"))] if "data" in phases else []
    marks += [("train", phases.get("result")), ("result", ended)]
    seconds, last = {}, submitted
    for name, end in marks:
        if end is None:
            break
        seconds[name] = round(max(0.0, end - last), 3)
        last = end
    return seconds


def host_cores() -> int:
    """Cores that this process may use: its affinity, and its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2, or no quota in it
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def local_directory() -> str:
    """Spark's local directory for this executor, of several the one with the most space."""
    folders = os.environ.get("SPARK_LOCAL_DIRS", "").split(",")
    usable = [folder for folder in folders if os.path.isdir(folder) and os.access(folder, os.W_OK)]
    return max(usable, key=lambda folder: shutil.disk_usage(folder).free, default=tempfile.gettempdir())
