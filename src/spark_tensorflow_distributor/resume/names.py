"""The names of checkpoints, and which of them are outdated. Pure.

A lane is a series of checkpoints that replace one another: one for each call of ``fit``, and one for the checkpoints
that the training function saves itself.
"""

from collections.abc import Iterable

# The lane of ``get_context().save_checkpoint``.
MANUAL_LANE = "manual"


def checkpoint_name(lane: str, sequence: int) -> str:
    """Return a name like ``fit0-00000012``; within a lane, names sort by age."""
    return f"{lane}-{sequence:08d}"


def lane_of(name: str) -> str:
    """Return the lane of a checkpoint: ``fit0`` for ``fit0-00000012``."""
    return name.rpartition("-")[0]


def sequence_of(name: str) -> int:
    """Return a checkpoint's number within its lane: 12 for ``fit0-00000012``."""
    return int(name.rpartition("-")[2])


def outdated(names: Iterable[str]) -> list[str]:
    """Return the checkpoints that can be deleted: all but the last two of each lane.

    The older of the two is the fallback if the newer turns out to be damaged. A ``fit`` that another one has followed
    keeps only its last checkpoint, which hands its model to what comes after it.
    """
    lanes: dict[str, list[str]] = {}
    for name in sorted(names):
        lanes.setdefault(lane_of(name), []).append(name)
    fits = sorted((lane for lane in lanes if lane.startswith("fit")), key=lambda lane: int(lane[3:]))
    return [name for lane, members in lanes.items() for name in members[: -1 if lane in fits[:-1] else -2]]
