"""Tracks when each rank last made progress, from its messages. Pure: no sockets, no clock."""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

# States of a trainer's process in which a signal or a debugger holds it.
SUSPENDED = ("stopped", "traced")
# Types of messages that always show progress; those of steps and lines of output need a closer look.
_PROGRESS = ("phase", "progress", "epochs", "done", "join", "intake", "rows", "committed", "resumed")


class ProgressWatch:
    """The progress of all ranks.

    Attributes:
        steps: Steps made together with the others, and the position in ``fit``, of each rank that has reported any.
        vitals: The last known state of each trainer's process.
        last: When each rank last made progress.
        suspended_since: When each suspended trainer was first seen suspended, by rank.
    """

    def __init__(self) -> None:
        self.steps: dict[int, tuple[int, Mapping[str, int] | None]] = {}
        self.vitals: dict[int, Mapping[str, Any]] = {}
        self.last: dict[int, float] = {}
        self.suspended_since: dict[int, float] = {}
        self._made: dict[int, int] = {}
        self._made_alone: Counter[int] = Counter()

    def begin(self, rank: int, now: float) -> None:
        """Start watching a rank."""
        self.last.setdefault(rank, now)

    def note(self, rank: int, message: Mapping[str, Any], now: float, *, waiting: Collection[int] = ()) -> None:
        """Record what a message says about progress.

        Args:
            rank: The sender.
            message: The message.
            now: The time.
            waiting: The ranks that may be waiting for the sender, because it is making a call by itself. Its steps then
                do not count as steps that all ranks make together.
        """
        kind = message["type"]
        if kind == "step":
            made = int(message["steps"])
            before, self._made[rank] = self._made.get(rank), made
            if waiting:
                self._made_alone[rank] += made - (before or 0)
                self.last.update(dict.fromkeys(waiting, now))
            state = (made - self._made_alone[rank], message.get("at"))
            changed, self.steps[rank] = self.steps.get(rank) != state or before != made, state
            if not changed:
                return
        elif kind == "alive":
            self.vitals[rank] = message
            if message.get("state") in SUSPENDED:
                self.suspended_since.setdefault(rank, now)
            else:
                self.suspended_since.pop(rank, None)
            return
        elif kind == "log":
            # In fit, only steps count as progress: a library may keep logging while it waits.
            if self.is_in_fit(rank):
                return
        elif kind not in _PROGRESS:
            return
        self.last[rank] = now

    def is_in_fit(self, rank: int) -> bool:
        """Return whether a rank is in ``fit``, as far as it has reported."""
        return self.steps.get(rank, (0, None))[1] is not None

    def stalled_for(self, done: Collection[int], now: float) -> float:
        """Return how long no working rank has made progress or, if longer, how long a rank in ``fit`` has made none."""
        since = {rank: now - when for rank, when in self.last.items() if rank not in done}
        in_fit = [seconds for rank, seconds in since.items() if self.is_in_fit(rank)]
        return max(max(in_fit, default=0.0), min(since.values(), default=0.0))

    def last_of_others(self, ranks: Collection[int]) -> float:
        """Return when a rank other than these last made progress; 0 if none has."""
        return max((when for rank, when in self.last.items() if rank not in ranks), default=0.0)
