"""Determines a worker's ranks, the resources of its host, and its trainer's environment variables."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...config import RunnerConfig
from ...context import WorkerContext
from ...data.disk import is_full
from ...errors import ClusterError
from ...formatting import sentence
from ..devices import DEFAULT_ENV, task_addresses, visible_devices
from .addresses import without_proxy

if TYPE_CHECKING:
    from pyspark import BarrierTaskContext


def hosts_of(addresses: Sequence[str]) -> list[str]:
    """Return the hosts of Spark's ``host:port`` task addresses; an IPv6 host keeps its brackets."""
    return [address.rsplit(":", 1)[0] if ":" in address else address for address in addresses]


def worker_contexts(hosts: Sequence[str]) -> list[WorkerContext]:
    """Assign ranks; return a context for each partition, in partition order. Pure.

    Spark assigns partitions to hosts in no particular order (A B B A). Ranks are assigned host by host, so that
    neighbours in the collective's ring share a host. Partition 0 is always rank 0: the run returns its value.

    Args:
        hosts: The host of each partition.
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
    cluster: Mapping[str, Sequence[str]],
    rank: int,
    gpus: tuple[str, ...],
    threads: int,
) -> dict[str, str]:
    """Return the trainer's environment. Pure: Spark reuses the Python worker, so its own environment must not change.

    Args:
        base: The Python worker's environment.
        extra: The run's ``env``.
        cluster: TF_CONFIG's ``cluster``.
        rank: This worker's index in it.
        gpus: Entries of CUDA_VISIBLE_DEVICES; if empty, all GPUs are hidden, as in 1.0.0.
        threads: This worker's share of the host's cores.
    """
    env = {**DEFAULT_ENV, **base}
    env.pop("PYTHONHASHSEED", None)  # Spark sets it for its own shuffles
    # Spark sets this to spark.task.cpus, usually 1, regardless of the worker's share of the cores.
    env["OMP_NUM_THREADS"] = str(threads)
    env.update(extra)
    env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    env["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})
    return env | without_proxy(env, hosts_of(cluster["worker"]))


def visible_gpus(context: "BarrierTaskContext", config: RunnerConfig, count: int) -> tuple[str, ...]:
    """Return a worker's entries of CUDA_VISIBLE_DEVICES; empty for CPU training.

    Args:
        context: Spark's context of the task.
        config: The runner's arguments.
        count: How many of the task's GPUs the worker uses.
    """
    if not config.use_gpu:
        return ()
    resources = {name: info.addresses for name, info in context.resources().items()}
    addresses = task_addresses(resources, config.gpu_resource_name)
    return visible_devices(addresses, count, os.environ.get("CUDA_VISIBLE_DEVICES"))


def phase_seconds(
    submitted: float, started: float, met: float | None, phases: Mapping[str, float], ended: float
) -> dict[str, float]:
    """Return the duration of each phase of a worker, in seconds.

    The phases are ``start``: from the driver's submission to the agent's first line; ``meet``: until all addresses
    were known; ``import``: until TensorFlow was imported and set up; ``strategy``: until the strategy was built;
    ``data``: until the rows of the DataFrames had arrived, if there are any; ``train``: running the function;
    ``result``: pickling the value and waiting for the other workers. The phase in which a worker fails is its last one.

    Args:
        submitted: When the driver submitted the job.
        started: When the agent started.
        met: When all addresses were known, or None.
        phases: When each of the trainer's phases began.
        ended: When the worker ended.
    """
    marks = [("start", started), ("meet", met)]
    marks += [("import", phases.get("strategy")), ("strategy", phases.get("data", phases.get("train")))]
    marks += [("data", phases.get("train"))] if "data" in phases else []
    marks += [("train", phases.get("result")), ("result", ended)]
    seconds, last = {}, submitted
    for name, end in marks:
        seconds[name] = round(max(0.0, (ended if end is None else end) - last), 3)
        if end is None:  # the worker failed in this phase
            break
        last = end
    return seconds


def host_cores() -> int:
    """Return how many cores this process may use, given its affinity and its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2, or no quota
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def local_directory() -> str:
    """Return Spark's local directory on this executor; if there are several, the one with the most free space."""
    folders = os.environ.get("SPARK_LOCAL_DIRS", "").split(",")
    usable = [folder for folder in folders if os.path.isdir(folder) and os.access(folder, os.W_OK)]
    return max(usable, key=lambda folder: shutil.disk_usage(folder).free, default=tempfile.gettempdir())


def new_log_directory() -> str:
    """Return a new directory for the files that a trainer writes below ``get_context().log_dir``."""
    return tempfile.mkdtemp(prefix="spark-tensorflow-logs-", dir=local_directory())


def remove_log_directory(directory: str | None) -> None:
    """Remove a directory of :func:`new_log_directory`. If that fails, Spark removes it with its own directory."""
    if directory is not None:
        shutil.rmtree(directory, ignore_errors=True)


def full_disk_error(error: Exception, host: str) -> ClusterError | None:
    """Return an error with advice if ``error`` means that Spark's local disk is full, else None."""
    if not is_full(error):
        return None
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return ClusterError(
            f"A file in {local_directory()} on {host} would exceed the limit for the size of a file: {sentence(error)} "
            "Raise it (ulimit -f) for the executors."
        )
    return ClusterError(
        f"The disk of {local_directory()} on {host} is full: {sentence(error)} Free space there, or point "
        "spark.local.dir (SPARK_LOCAL_DIRS on the executors) to a larger disk."
    )
