"""Translates the resources that Spark assigned to a task into a rank's GPUs and threads. Pure."""

import re
from collections.abc import Mapping, Sequence

from ..errors import GpuConfigurationError

_INDEX = re.compile(r"0|[1-9][0-9]*")
_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z/\-]+")


def split_gpus(num_slots: int, num_tasks: int) -> tuple[int, ...]:
    """Return how many GPUs each rank uses, ``num_slots`` in total.

    If the GPUs do not divide evenly, the first ranks use one more, as in 1.0.0.
    """
    each, rest = divmod(num_slots, num_tasks)
    return tuple(each + (rank < rest) for rank in range(num_tasks))


def visible_devices(addresses: Sequence[str], count: int, executor_visible: str | None) -> tuple[str, ...]:
    """Return the entries of this rank's CUDA_VISIBLE_DEVICES.

    Args:
        addresses: The GPUs that Spark assigned to the task: indices (``"0"``) or UUIDs (``"GPU-..."``, ``"MIG-..."``).
        count: How many of them this rank uses. It uses the first ones, so that a rank keeps its devices between runs.
        executor_visible: The executor's own CUDA_VISIBLE_DEVICES, or None if it is not set. A process that sees only
            some of the host's GPUs numbers them from 0, and so does a discovery script that runs in it: Spark's
            indices are positions in this list.

    Raises:
        GpuConfigurationError: An address is neither an index nor a UUID, or is not in the executor's list, or there
            are fewer addresses than ``count``.
    """
    for address in addresses:
        if not _INDEX.fullmatch(address) and not _UUID.fullmatch(address):
            raise GpuConfigurationError(
                f"Spark assigned the GPU addresses {list(addresses)}, but {address!r} is neither an index without "
                "leading zeros ('0', '1', ...) nor a UUID ('GPU-...', 'MIG-...'), as CUDA_VISIBLE_DEVICES requires. "
                "Correct the output of spark.worker.resource.<name>.discoveryScript (or spark.executor.resource..., "
                "spark.driver.resource...)."
            )
    if count > len(addresses):
        raise GpuConfigurationError(
            f"This worker should use {count} GPUs, but Spark assigned it {len(addresses)}: {list(addresses)}."
        )
    chosen = addresses[:count]
    if executor_visible is None:
        return tuple(chosen)
    visible = [entry.strip() for entry in executor_visible.split(",") if entry.strip()]
    return tuple(_look_up(address, visible, executor_visible) for address in chosen)


def _look_up(address: str, visible: Sequence[str], as_set: str) -> str:
    if not _INDEX.fullmatch(address):
        if visible and address not in visible and all(_UUID.fullmatch(entry) for entry in visible):
            raise GpuConfigurationError(
                f"Spark assigned the GPU {address}, which is not in the executor's CUDA_VISIBLE_DEVICES={as_set!r}. "
                "Make the discovery script list only the GPUs that the executor may use."
            )
        return address
    if int(address) >= len(visible):
        raise GpuConfigurationError(
            f"Spark assigned the GPU address {address}, but the executor's CUDA_VISIBLE_DEVICES={as_set!r} has only "
            f"{len(visible)} entries, numbered from 0. Unset it for the executors (spark.executorEnv."
            "CUDA_VISIBLE_DEVICES), or make the discovery script list addresses from 0 to "
            f"{max(len(visible) - 1, 0)}."
        )
    return visible[int(address)]


def task_addresses(resources: Mapping[str, Sequence[str]], name: str) -> tuple[str, ...]:
    """Return the GPU addresses that Spark assigned under the resource's name.

    Raises:
        GpuConfigurationError: Spark assigned no such resource.
    """
    if name not in resources:
        found = ", ".join(sorted(resources)) or "none"
        raise GpuConfigurationError(
            f"Spark assigned no resource named {name!r} (resources found: {found}). Set spark.task.resource.{name}."
            f"amount, spark.executor.resource.{name}.amount and spark.worker.resource.{name}.discoveryScript (for "
            f"local_mode spark.driver.resource.{name}.amount and .discoveryScript), or set gpu_resource_name to the "
            "name that they use."
        )
    return tuple(resources[name])


def threads_for(host_cores: int, local_world_size: int, task_cpus: int) -> int:
    """Return a worker's number of TensorFlow threads: its share of the host's cores, but at least its task's CPUs."""
    return max(1, task_cpus, host_cores // max(1, local_world_size))


# Hides the dozen informational lines that TensorFlow logs at startup, but not its warnings and errors. TensorFlow reads
# the level once, when it is imported.
DEFAULT_ENV = {"TF_CPP_MIN_LOG_LEVEL": "1"}
