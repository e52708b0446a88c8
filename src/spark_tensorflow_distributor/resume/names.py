"""The names of checkpoints, and which of them need not be kept. Pure."""

from collections.abc import Iterable


def checkpoint_name(lane: str, sequence: int) -> str:
    """``fit0-00000012``: those of a lane sort by age."""
    return f"{lane}-{sequence:08d}"


def lane_of(name: str) -> str:
    """The lane of a checkpoint, ``fit0`` of ``fit0-00000012``."""
    return name.rpartition("-")[0]


def outdated(names: Iterable[str]) -> list[str]:
    """Which checkpoints need not be kept: all but the last two of each lane.

    Two, for the case that the newer one turns out to be damaged. Of a ``fit`` that another one has followed the last is
    enough: it is there to hand its model to what comes after it.
    """
    lanes: dict[str, list[str]] = {}
    for name in sorted(names):
        lanes.setdefault(lane_of(name), []).append(name)
    fits = sorted((lane for lane in lanes if lane.startswith("fit")), key=lambda lane: int(lane[3:]))
    return [name for lane, members in lanes.items() for name in members[: -1 if lane in fits[:-1] else -2]]
