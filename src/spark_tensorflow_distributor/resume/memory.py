"""The memory of this host, or of the container in which this process runs."""

import contextlib
import os
from typing import NamedTuple


class _Cgroup(NamedTuple):
    """Where Linux shows a container's memory, and the name of the cached files that it drops when memory gets short."""

    limit: str
    used: str
    statistics: str
    droppable: str


# Versions 2 and 1. Without a limit, the first contains "max", and the second a number larger than any memory.
_CGROUPS = (
    _Cgroup(
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory.current",
        "/sys/fs/cgroup/memory.stat",
        "inactive_file",
    ),
    _Cgroup(
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
        "total_inactive_file",
    ),
)
_MEMINFO = "/proc/meminfo"


def total_memory() -> int:
    """Return the memory of the host, or of the container if that is less, in bytes."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for cgroup in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):
            limits.append(_number(cgroup.limit))
    return min(limits)


def available_memory() -> int | None:
    """Return the free memory of the host, or of the container if that is less, in bytes; None if unknown."""
    try:
        with open(_MEMINFO, encoding="ascii") as file:
            values = dict(line.split(":", 1) for line in file)
        limits = [int(values["MemAvailable"].split()[0]) * 1024]
    except (OSError, KeyError, ValueError):
        return None
    for cgroup in _CGROUPS:
        with contextlib.suppress(OSError, KeyError, ValueError):
            with open(cgroup.statistics, encoding="ascii") as file:
                droppable = int(dict(line.split() for line in file)[cgroup.droppable])
            limits.append(max(0, _number(cgroup.limit) - _number(cgroup.used) + droppable))
    return min(limits)


def _number(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())
