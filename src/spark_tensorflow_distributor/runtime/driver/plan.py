"""Turns the runner's arguments and the facts about the cluster into a plan, or rejects them. Pure."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...config import RunnerConfig
from ...errors import ClusterError, EncryptionUnsupportedError, GpuConfigurationError, InsufficientSlotsError
from ...transport.sealing import INSTALL_COMMAND, Protection
from ..devices import split_gpus
from ..spark_settings import COLLECTIVES, IGNORE_SSL, PROTECTION, SparkSettings, boolean, parse_settings
from ..specs import RunPlan

# Settings that require encrypted traffic.
_NETWORK_ENCRYPTION = {
    "spark.ssl.enabled": "TLS",
    "spark.network.crypto.enabled": "encryption of traffic between hosts",
}
_DISK_ENCRYPTION = {"spark.io.encryption.enabled": "encryption of files on local disks"}
_DISK_PROBLEM = (
    "The cluster requires encryption: {}. The library's temporary files, with rows of DataFrames and checkpoints, are "
    "not encrypted."
)
_IGNORED = (
    "The cluster requires encryption: {}. The library's temporary files and, unless they are protected otherwise, the "
    "traffic between the workers and between the workers and the driver are not encrypted. The run starts anyway, "
    "because {} is true."
)


@dataclass(frozen=True)
class ClusterFacts:
    """The facts about a cluster that a plan depends on.

    Attributes:
        conf: Values of the settings that matter to a run; unset ones are missing.
        is_connect: Whether the session is a Spark Connect session, which does not provide all facts.
        slots: Number of tasks of this kind that the cluster can run simultaneously now, or None if unknown.
        executors: Number of registered executors, or None if unknown.
        may_grow: Whether more executors may still register.
        task_resource_amount: GPUs per task in the resource profile; None to use the Spark setting.
        has_profile: Whether the user passed a resource profile.
        can_encrypt: Whether the driver's Python has the package ``cryptography``.
        profile_tasks: What the profile requests for each task, for messages.
    """

    conf: Mapping[str, str]
    is_connect: bool = False
    slots: int | None = None
    executors: int | None = None
    may_grow: bool = False
    task_resource_amount: float | None = None
    has_profile: bool = False
    can_encrypt: bool = False
    profile_tasks: str = ""

    @property
    def is_local(self) -> bool:
        """Whether Spark runs in the driver's own JVM, where the number of slots is fixed."""
        return is_local_master(self.conf.get("spark.master"))


def is_local_master(master: str | None) -> bool:
    """Return whether a master URL means Spark in the driver's own JVM; ``local-cluster`` does not."""
    return re.match(r"local(\[|$)", master or "") is not None


def num_tasks_for(config: RunnerConfig, facts: ClusterFacts) -> int:
    """Return the number of Spark tasks for ``num_slots``.

    Raises:
        GpuConfigurationError: The number of GPUs per task is not set, or is invalid.
    """
    if not config.use_gpu:
        return config.num_slots
    return math.ceil(config.num_slots / max(1, _task_gpus(config, facts)))


def make_plan(config: RunnerConfig, facts: ClusterFacts) -> RunPlan:
    """Check everything that can be checked without starting a job, except the number of slots.

    Raises:
        GpuConfigurationError: See :func:`num_tasks_for`.
        EncryptionUnsupportedError: The cluster requires encryption that is not possible.
        ClusterError: Dynamic allocation is enabled, or a setting is invalid or does not fit the arguments.
    """
    settings = parse_settings(facts.conf)
    num_tasks = num_tasks_for(config, facts)
    _check_dynamic_allocation(facts)
    shared = False
    gpus: tuple[int, ...] = ()
    if config.use_gpu:
        shared, gpus = _task_gpus(config, facts) < 1, split_gpus(config.num_slots, num_tasks)
    uses_sockets = _uses_sockets(config, settings, gpus)
    protection, warnings = _choose_protection(facts, settings, uses_sockets)
    return RunPlan(num_tasks, gpus, shared, uses_sockets, warnings, protection, settings)


def _task_gpus(config: RunnerConfig, facts: ClusterFacts) -> float:
    name = config.gpu_resource_name
    key = f"spark.task.resource.{name}.amount"
    if facts.task_resource_amount is not None:
        return facts.task_resource_amount
    value = facts.conf.get(key)
    if value is None or facts.has_profile:
        why = f"resource_profile requests no {name!r} for its tasks" if facts.has_profile else f"{key} is not set"
        raise GpuConfigurationError(
            f"The run needs GPUs (use_gpu=True), but {why}, so Spark does not schedule GPUs. Set {key} "
            f"(GPUs per task, usually 1), spark.executor.resource.{name}.amount and "
            f"spark.executor.resource.{name}.discoveryScript when the Spark application starts, or train on CPUs with "
            "use_gpu=False. If this cluster uses another name for the resource, pass it as gpu_resource_name."
        )
    try:
        amount = float(value)
    except ValueError:
        amount = math.nan
    if not amount > 0 or (amount > 1 and amount != int(amount)):
        raise GpuConfigurationError(
            f"{key} is {value!r}; it must be a whole number of GPUs per task, or a fraction up to 0.5 if several tasks "
            "share one GPU."
        )
    return amount


def _uses_sockets(config: RunnerConfig, settings: SparkSettings, gpus: tuple[int, ...]) -> bool:
    """Return whether the workers form a process group.

    Raises:
        ClusterError: The setting ``collectives`` or ``gradient_compression`` is not possible here.
    """
    uses_sockets = _chosen_engine(config, settings, gpus) == "sockets"
    if config.gradient_compression is not None and not uses_sockets:
        raise ClusterError(
            f"gradient_compression={config.gradient_compression!r} works only where the library's own collectives are "
            f"used, which is on CPUs without use_custom_strategy, or with {COLLECTIVES}=sockets. Use "
            "gradient_compression=None."
        )
    return uses_sockets


def _chosen_engine(config: RunnerConfig, settings: SparkSettings, gpus: tuple[int, ...]) -> str:
    """Return the engine of the collectives: by default sockets on CPUs, unless the program has its own strategy."""
    value = settings.collectives
    if value == "auto":
        return "tensorflow" if config.use_gpu or config.use_custom_strategy else "sockets"
    if value == "sockets" and (config.use_custom_strategy or max(gpus, default=1) > 1):
        what = "use_custom_strategy=True" if config.use_custom_strategy else f"{max(gpus)} GPUs per task"
        raise ClusterError(
            f"{COLLECTIVES} is 'sockets', which does not work with {what}: TensorFlow's own strategies need "
            "TensorFlow's collectives. Set it to auto, or unset it."
        )
    return value


def _choose_protection(
    facts: ClusterFacts, settings: SparkSettings, uses_sockets: bool
) -> tuple[Protection, tuple[str, ...]]:
    """Return how traffic between hosts is protected, and warnings.

    Raises:
        EncryptionUnsupportedError: The cluster requires encryption that is not possible.
        ClusterError: One of Spark's settings for encryption is invalid.
    """
    chosen, is_ignored = settings.protection, settings.ignores_encryption
    disks, network = _found(facts, _DISK_ENCRYPTION), _found(facts, _NETWORK_ENCRYPTION)
    if chosen == "privacy":
        reasons = [*network, f"{PROTECTION}=privacy"]
    else:
        reasons = [] if is_ignored else network
    problem = _network_problem(facts, reasons, uses_sockets) if reasons else ""
    if disks and not is_ignored:
        problem = problem or _DISK_PROBLEM.format(", ".join(disks))
    if problem:
        raise EncryptionUnsupportedError(
            f"{problem} If the network between the hosts is trusted, set {IGNORE_SSL}=true and {PROTECTION}=auto in "
            "the Spark configuration."
        )
    ignored = [*disks, *([] if reasons else network)]
    protection: Protection = "privacy" if reasons else "integrity" if chosen == "integrity" else "light"
    return protection, (_IGNORED.format(", ".join(ignored), IGNORE_SSL),) if ignored else ()


def _found(facts: ClusterFacts, settings: Mapping[str, str]) -> list[str]:
    return [f"{key}=true ({what})" for key, what in settings.items() if boolean(facts.conf, key)]


def _network_problem(facts: ClusterFacts, found: list[str], uses_sockets: bool) -> str:
    """Return why traffic cannot be encrypted; "" if it can."""
    required = f"The cluster requires encryption: {', '.join(found)}."
    if not uses_sockets:
        return (
            f"{required} TensorFlow's own runtime, which GPUs, use_custom_strategy and {COLLECTIVES}=tensorflow use, "
            "does not encrypt the traffic between the workers (gradients, weights)."
        )
    if not facts.can_encrypt:
        return (
            f"{required} Encryption needs the package 'cryptography', which the driver's Python does not have. Run "
            f"`{INSTALL_COMMAND}` on the driver and on all executors."
        )
    return ""


def _check_dynamic_allocation(facts: ClusterFacts) -> None:
    key = "spark.dynamicAllocation.enabled"
    if boolean(facts.conf, key) and not facts.is_local:
        raise ClusterError(
            f"{key} is true, but Spark does not run barrier stages with dynamic allocation (SPARK-24942). Start the "
            f"application with {key}=false and a fixed number of executors (spark.executor.instances, or "
            "spark.cores.max on a standalone cluster)."
        )


def check_slots(config: RunnerConfig, facts: ClusterFacts, num_tasks: int) -> InsufficientSlotsError | None:
    """Return the error to raise if the cluster has too few slots now; None if it has enough, or if that is unknown."""
    if facts.slots is None or facts.slots >= num_tasks:
        return None
    conf, name = facts.conf, config.gpu_resource_name
    keys = ["spark.master", "spark.task.cpus", "spark.executor.cores", "spark.executor.instances", "spark.cores.max"]
    if config.use_gpu:
        keys += [f"spark.task.resource.{name}.amount", f"spark.executor.resource.{name}.amount"]
    if facts.has_profile:  # it replaces Spark's settings for tasks
        keys = [key for key in keys if not key.startswith("spark.task.")]
    profile = f", resource_profile with {facts.profile_tasks} per task" if facts.has_profile else ""
    settings = ", ".join(f"{key}={conf.get(key, 'not set')}" for key in keys if key in conf or "instances" not in key)
    where = "" if facts.is_local or facts.executors is None else f" on {facts.executors} executors"
    if facts.executors == 0 and not facts.is_local:
        change = "No executor has registered: look at the cluster manager's page for free resources"
    elif facts.is_local:
        change = f"Start Spark with at least master('local[{num_tasks}]')"
    else:
        change = "Start more or larger executors (spark.executor.instances, spark.executor.cores, spark.cores.max)"
    smaller = f", or use num_slots={max_slots(config, facts)}" if facts.slots else ""
    gpus = f" (num_slots={config.num_slots} GPUs)" if config.use_gpu else ""
    return InsufficientSlotsError(
        f"The run needs {num_tasks} Spark tasks at the same time{gpus}, but the cluster has {facts.slots} slots"
        f"{where}. An executor has as many slots as its cores divided by spark.task.cpus, or its GPUs divided by the "
        f"GPUs per task if that is less. {change}{smaller}. Found: "
        f"{settings}{profile}."
    )


def max_slots(config: RunnerConfig, facts: ClusterFacts) -> int:
    """Return the largest ``num_slots`` that fits the cluster now."""
    tasks = facts.slots or 0
    return int(tasks * max(1, _task_gpus(config, facts))) if config.use_gpu else tasks


def max_row_bytes(max_result: int, heap: int | None) -> int:
    """Return the largest result, in bytes, that may be sent through Spark's rows.

    A result of 200 MB exhausted a heap of 1 GB and the job then hung; an eighth of the heap is safe.

    Args:
        max_result: ``spark.driver.maxResultSize`` in bytes; 0 for no limit.
        heap: Heap of the driver's JVM in bytes, or None if unknown.
    """
    limit = (heap or max_result or 1 << 30) // 8
    return min(max_result, limit) if max_result else limit
