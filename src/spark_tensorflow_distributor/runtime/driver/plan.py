"""From the runner's arguments and the facts of the cluster to a plan, or to a refusal. Pure."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...config import RunnerConfig
from ...errors import ClusterError, EncryptionUnsupportedError, GpuConfigurationError, InsufficientSlotsError
from ..devices import deal_gpus

IGNORE_SSL = "tensorflow.spark.distributor.ignoreSsl"
WARM_START = "tensorflow.spark.distributor.warmStart"
WARM_SECONDS = "tensorflow.spark.distributor.warmSeconds"
DRIVER_PORT = "tensorflow.spark.distributor.driverPort"
WORKER_PORTS = "tensorflow.spark.distributor.workerPorts"

_ENCRYPTION = {
    "spark.ssl.enabled": "TLS",
    "spark.network.crypto.enabled": "encryption of the traffic between hosts",
    "spark.io.encryption.enabled": "encryption of files on local disks",
}
_UNITS = {"": 0, "b": 0, "k": 1, "kb": 1, "m": 2, "mb": 2, "g": 3, "gb": 3, "t": 4, "tb": 4, "p": 5, "pb": 5}


@dataclass(frozen=True)
class ClusterFacts:
    """What the plan depends on.

    Attributes:
        conf: the settings named in this module, where they are set.
        is_connect: a Spark Connect session: some facts cannot be asked for.
        slots: tasks of this kind that the cluster can run at once now; None where that cannot be told.
        workers: how many executors are registered; None where that cannot be told.
        may_grow: more executors may still register.
        task_resource_amount: GPUs a task as the resource profile asks for; None: the setting counts.
        has_profile: a resource profile was given.
    """

    conf: Mapping[str, str]
    is_connect: bool = False
    slots: int | None = None
    workers: int | None = None
    may_grow: bool = False
    task_resource_amount: float | None = None
    has_profile: bool = False

    @property
    def is_local(self) -> bool:
        """Spark runs in the driver's own JVM, and has all the slots it will ever have."""
        return is_local_master(self.conf.get("spark.master"))


def is_local_master(master: str | None) -> bool:
    """Whether a master URL means Spark in the driver's own JVM; ``local-cluster`` does not."""
    return re.match(r"local(\[|$)", master or "") is not None


@dataclass(frozen=True)
class RunPlan:
    """What will be launched.

    Attributes:
        num_tasks: Spark tasks, each with one worker.
        gpus_by_rank: how many GPUs each rank uses; empty for CPU training.
        gpu_is_shared: several tasks share one GPU.
        warnings: what the user should know before it starts.
    """

    num_tasks: int
    gpus_by_rank: tuple[int, ...] = ()
    gpu_is_shared: bool = False
    warnings: tuple[str, ...] = ()


def num_tasks_for(config: RunnerConfig, facts: ClusterFacts) -> int:
    """Spark tasks for ``num_slots``.

    Raises:
        GpuConfigurationError: the amount of GPUs a task is missing or makes no sense.
    """
    if not config.use_gpu:
        return config.num_slots
    return math.ceil(config.num_slots / max(1, _task_gpus(config, facts)))


def make_plan(config: RunnerConfig, facts: ClusterFacts) -> RunPlan:
    """Check all that can be checked without running anything, but for the number of slots.

    Raises:
        GpuConfigurationError: see :func:`num_tasks_for`.
        EncryptionUnsupportedError: the cluster asks for encryption.
        ClusterError: dynamic allocation is on.
    """
    num_tasks = num_tasks_for(config, facts)
    warnings = _check_encryption(facts)
    _check_dynamic_allocation(facts)
    if not config.use_gpu:
        return RunPlan(num_tasks, warnings=warnings)
    shared = _task_gpus(config, facts) < 1
    return RunPlan(num_tasks, deal_gpus(config.num_slots, num_tasks), shared, warnings)


def _task_gpus(config: RunnerConfig, facts: ClusterFacts) -> float:
    name = config.gpu_resource_name
    key = f"spark.task.resource.{name}.amount"
    if facts.task_resource_amount is not None:
        return facts.task_resource_amount
    value = facts.conf.get(key)
    if value is None or facts.has_profile:
        where = (
            "the resource_profile's task requests have no such resource" if facts.has_profile else f"{key} is not set"
        )
        raise GpuConfigurationError(
            f"use_gpu=True, and {where}: Spark does not schedule GPUs here. Set {key} (GPUs a task, usually 1), "
            f"spark.executor.resource.{name}.amount and spark.executor.resource.{name}.discoveryScript when the Spark "
            "application starts, or train on CPUs with use_gpu=False. If the resource has another name on this "
            "cluster, give it as gpu_resource_name."
        )
    try:
        amount = float(value)
    except ValueError:
        amount = math.nan
    if not amount > 0 or (amount > 1 and amount != int(amount)):
        raise GpuConfigurationError(
            f"{key} is {value!r}; it must be a whole number of GPUs a task, or a fraction up to 0.5 by which several "
            "tasks share one GPU."
        )
    return amount


def _check_encryption(facts: ClusterFacts) -> tuple[str, ...]:
    wanted = [key for key in _ENCRYPTION if is_true(facts.conf.get(key), key)]
    if not wanted:
        return ()
    asked = ", ".join(f"{key}=true ({_ENCRYPTION[key]})" for key in wanted)
    what = (
        f"The cluster asks for encryption: {asked}. TensorFlow's own traffic between the workers (gradients, model "
        "parameters) has neither encryption nor authentication, and the library's temporary files are plain"
    )
    if is_true(facts.conf.get(IGNORE_SSL), IGNORE_SSL):
        return (f"{what}. {IGNORE_SSL} is true, so the run goes on.",)
    raise EncryptionUnsupportedError(
        f"{what}. If the network between the hosts is trusted, set {IGNORE_SSL}=true in the Spark configuration."
    )


def _check_dynamic_allocation(facts: ClusterFacts) -> None:
    key = "spark.dynamicAllocation.enabled"
    if is_true(facts.conf.get(key), key) and not facts.is_local:
        raise ClusterError(
            f"{key} is true, and Spark refuses barrier stages with dynamic allocation (SPARK-24942). Start the "
            f"application with {key}=false and a fixed number of executors (spark.executor.instances, or "
            "spark.cores.max on a standalone cluster)."
        )


def check_slots(config: RunnerConfig, facts: ClusterFacts, num_tasks: int) -> InsufficientSlotsError | None:
    """The error to raise where the cluster has too few slots now; None where it has enough, or cannot tell."""
    if facts.slots is None or facts.slots >= num_tasks:
        return None
    conf, name = facts.conf, config.gpu_resource_name
    keys = ["spark.master", "spark.task.cpus", "spark.executor.cores", "spark.executor.instances", "spark.cores.max"]
    if config.use_gpu:
        keys += [f"spark.task.resource.{name}.amount", f"spark.executor.resource.{name}.amount"]
    settings = ", ".join(f"{key}={conf.get(key, 'not set')}" for key in keys if key in conf or "instances" not in key)
    workers = "" if facts.is_local or facts.workers is None else f" on {facts.workers} executors"
    if facts.is_local:
        change = f"Start Spark with master('local[{num_tasks}]') or more"
    else:
        change = "Start more or larger executors (spark.executor.instances, spark.executor.cores, spark.cores.max)"
    gpus = f" (num_slots={config.num_slots} GPUs)" if config.use_gpu else ""
    return InsufficientSlotsError(
        f"The run needs {num_tasks} Spark tasks at the same time{gpus}, and the cluster has {facts.slots} slots"
        f"{workers}: an executor runs as many tasks as its cores divided by spark.task.cpus, and its GPUs divided by "
        f"a task's GPUs, allow. {change}, or ask for num_slots={max_slots(config, facts)}. Found: {settings}."
    )


def max_slots(config: RunnerConfig, facts: ClusterFacts) -> int:
    """The largest ``num_slots`` for which the cluster has room."""
    tasks = facts.slots or 0
    return int(tasks * max(1, _task_gpus(config, facts))) if config.use_gpu else tasks


def max_row_bytes(max_result: int, heap: int | None) -> int:
    """How large a result may be to go through Spark's rows.

    A result of 200 MB was seen to exhaust a heap of 1 GB, and the job then never ended: an eighth is safe.

    Args:
        max_result: ``spark.driver.maxResultSize`` in bytes; 0 for no limit.
        heap: heap of the driver's JVM in bytes, where it is known.
    """
    room = (heap or max_result or 1 << 30) // 8
    return min(max_result, room) if max_result else room


def is_true(value: str | None, key: str) -> bool:
    """A boolean Spark setting; unset is false.

    Raises:
        ClusterError: it is neither true nor false.
    """
    lower = (value or "false").strip().lower()
    if lower not in ("true", "false"):
        raise ClusterError(f"{key} is {value!r}; it must be true or false.")
    return lower == "true"


def number(value: str, key: str) -> float:
    """A setting that is a number, 0 or more.

    Raises:
        ClusterError: it is none.
    """
    try:
        found = float(value)
    except ValueError:
        found = -1.0
    if not 0 <= found < math.inf:
        raise ClusterError(f"{key} is {value!r}; it must be a number, 0 or more.")
    return found


def ports(value: str, key: str) -> tuple[int, ...]:
    """A range such as ``20000-20099``: the first and the one after the last; empty where nothing is set.

    Raises:
        ClusterError: it is no range of ports.
    """
    if not value:
        return ()
    first, _, last = value.partition("-")
    if first.isdigit() and last.isdigit() and 0 < int(first) <= int(last) < 1 << 16:
        return int(first), int(last) + 1
    raise ClusterError(f"{key} is {value!r}; it must be a range of ports, such as 20000-20099.")


def parse_bytes(value: str, key: str) -> int:
    """Spark's sizes: ``1g``, ``512m``, ``1048576``.

    Raises:
        ClusterError: it is no size.
    """
    match = re.fullmatch(r"(\d+)([a-z]*)", value.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise ClusterError(f"{key} is {value!r}; it must be a size such as 1g.")
    return int(match[1]) << (10 * _UNITS[match[2]])
