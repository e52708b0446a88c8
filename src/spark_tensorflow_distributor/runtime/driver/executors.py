"""Decides whether to wait for executors. Pure."""

import re
from collections.abc import Mapping

from .plan import is_local_master

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def may_grow(conf: Mapping[str, str], executors: int, age: float) -> bool:
    """Return whether more executors can be expected.

    Args:
        conf: Spark's settings.
        executors: How many have registered. While there are none, the cluster is starting them or has no room yet.
        age: Seconds since the application started.
    """
    if is_local_master(conf.get("spark.master")):
        return False
    wanted = conf.get("spark.executor.instances", "")
    if executors == 0 or (wanted.isdigit() and executors < int(wanted)):
        return True
    return age < _seconds(conf.get("spark.scheduler.maxRegisteredResourcesWaitingTime", "30s"))


def _seconds(duration: str) -> float:
    """Parse a duration in Spark's notation, in which a bare number means milliseconds; return 30 s if it is invalid."""
    match = re.fullmatch(r"(\d+)\s*(ms|s|m|min|h|d)?", duration.strip())
    return int(match[1]) * _UNITS[match[2] or "ms"] if match else 30.0
