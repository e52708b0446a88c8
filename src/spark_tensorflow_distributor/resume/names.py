"""The names of checkpoints, and which of them are outdated. Pure.

A lane is a series of checkpoints, each of which replaces earlier ones. There is a lane for each call to ``fit``, and
one for the checkpoints that the training function saves itself.
"""

import re
from collections.abc import Iterable

# The lane of ``get_context().save_checkpoint``.
MANUAL_LANE = "manual"


def checkpoint_name(lane: str, sequence: int) -> str:
    """Return a name like ``fit0-00000012``; within a lane, newer names sort last."""
    return f"{lane}-{sequence:08d}"


def is_checkpoint_name(name: str) -> bool:
    """Return whether :func:`checkpoint_name` could have made a name."""
    return re.fullmatch(rf"(fit[0-9]{{1,9}}|{MANUAL_LANE})-[0-9]{{8}}", name) is not None


def lane_of(name: str) -> str:
    """Return the lane of a checkpoint: ``fit0`` for ``fit0-00000012``."""
    return name.rpartition("-")[0]


def sequence_of(name: str) -> int:
    """Return a checkpoint's number within its lane: 12 for ``fit0-00000012``."""
    return int(name.rpartition("-")[2])


def last_sequence(names: Iterable[str], lane: str) -> int:
    """Return the highest number in a lane; -1 if the lane has no checkpoint."""
    return max((sequence_of(name) for name in names if lane_of(name) == lane), default=-1)


def outdated(names: Iterable[str]) -> list[str]:
    """Return the checkpoints that can be deleted: in general, all but the last two of each lane.

    The older of the two is the fallback if the newer one turns out to be damaged. A ``fit`` that was followed by
    another one keeps only its last checkpoint, from which its model is restored.
    """
    lanes: dict[str, list[str]] = {}
    for name in sorted(names):
        lanes.setdefault(lane_of(name), []).append(name)
    fits = sorted((lane for lane in lanes if lane.startswith("fit")), key=lambda lane: int(lane[3:]))
    return [name for lane, members in lanes.items() for name in members[: -1 if lane in fits[:-1] else -2]]
