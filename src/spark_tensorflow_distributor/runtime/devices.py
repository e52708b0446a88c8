"""What Spark dealt to a task, as this rank's GPUs and threads. Pure: the caller brings the facts."""

import re
from collections.abc import Mapping, Sequence

from ..errors import GpuConfigurationError

_INDEX = re.compile(r"0|[1-9][0-9]*")
_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z/\-]+")


def deal_gpus(num_slots: int, num_tasks: int) -> tuple[int, ...]:
    """How many GPUs each rank uses, so that exactly ``num_slots`` are used in all.

    Where it does not divide, the first ranks take one more, as in 1.0.0.
    """
    each, rest = divmod(num_slots, num_tasks)
    return tuple(each + (rank < rest) for rank in range(num_tasks))


def visible_devices(addresses: Sequence[str], count: int, executor_visible: str | None) -> tuple[str, ...]:
    """The entries of this rank's CUDA_VISIBLE_DEVICES.

    Args:
        addresses: what Spark dealt to the task: indices (``"0"``) or UUIDs (``"GPU-..."``, ``"MIG-..."``).
        count: how many of them this rank uses; the first ones, so that a rank keeps its devices from run to run.
        executor_visible: the executor's own CUDA_VISIBLE_DEVICES, or None where it has none. A process that sees
            only some of the host's GPUs counts those from 0, and so does a discovery script that runs in it: Spark's
            indices are positions in this list.

    Raises:
        GpuConfigurationError: an address is neither an index nor a UUID, is not in the executor's list, or there
            are fewer of them than ``count``.
    """
    for address in addresses:
        if not _INDEX.fullmatch(address) and not _UUID.fullmatch(address):
            raise GpuConfigurationError(
                f"Spark dealt the GPU addresses {list(addresses)}; {address!r} is neither an index without leading "
                "zeros ('0', '1', ...) nor a UUID ('GPU-...', 'MIG-...'), as CUDA_VISIBLE_DEVICES wants them. "
                "Correct the output of spark.worker.resource.<name>.discoveryScript (or spark.executor.resource..., "
                "spark.driver.resource...)."
            )
    if count > len(addresses):
        raise GpuConfigurationError(
            f"This worker should use {count} GPUs, and Spark dealt it {len(addresses)}: {list(addresses)}."
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
                f"Spark dealt the GPU {address}, which is not in the executor's CUDA_VISIBLE_DEVICES={as_set!r}. "
                "Let the discovery script list only the GPUs that the executor may see."
            )
        return address
    if int(address) >= len(visible):
        raise GpuConfigurationError(
            f"Spark dealt the GPU address {address}, but the executor's CUDA_VISIBLE_DEVICES={as_set!r} has "
            f"{len(visible)} entries, counted from 0. Unset it for the executors (spark.executorEnv."
            "CUDA_VISIBLE_DEVICES), or let the discovery script list addresses from 0 to "
            f"{max(len(visible) - 1, 0)}."
        )
    return visible[int(address)]


def task_addresses(resources: Mapping[str, Sequence[str]], name: str) -> tuple[str, ...]:
    """The GPU addresses that Spark dealt under the resource's name.

    Raises:
        GpuConfigurationError: Spark dealt no such resource.
    """
    if name not in resources:
        found = ", ".join(sorted(resources)) or "none"
        raise GpuConfigurationError(
            f"Spark dealt no resource named {name!r} (resources found: {found}). Set spark.task.resource.{name}."
            f"amount, spark.executor.resource.{name}.amount and spark.worker.resource.{name}.discoveryScript (for "
            f"local_mode spark.driver.resource.{name}.amount and .discoveryScript), or give the name that they use "
            "as gpu_resource_name."
        )
    return tuple(resources[name])


def threads_for(host_cores: int, local_world_size: int, task_cpus: int) -> int:
    """TensorFlow threads of one worker: its share of the host's cores, at least what Spark gave the task."""
    return max(1, task_cpus, host_cores // max(1, local_world_size))


# TensorFlow notes a dozen lines of its own affairs at each start; its warnings and errors still come. It reads the
# level once, when it is imported.
DEFAULT_ENV = {"TF_CPP_MIN_LOG_LEVEL": "1"}
