"""Decides at which steps the ranks synchronise, and whether they save a checkpoint there. Pure.

All ranks must save at the same step, but their clocks differ. At each sync, rank 0 therefore converts the remaining
seconds into steps, and announces the step of the next sync.
"""

import time
from collections.abc import Callable

from .interval import CheckpointInterval

# Steps until the first sync of a fit, when its speed is not known yet.
_FIRST_STEPS = 10
# The speed of training may change, so the distance between syncs grows by at most this factor each time.
_MAX_GROWTH = 8


class SaveClock:
    """Paces the checkpoints of one ``fit``.

    Args:
        interval: How often to save.
        now: A monotonic clock, in seconds.
    """

    def __init__(self, interval: CheckpointInterval, now: Callable[[], float] = time.monotonic) -> None:
        self._interval, self._now = interval, now
        self._steps_done = self._last_sync_step = 0
        self._last_sync = self._last_save = now()
        self._distance = _FIRST_STEPS
        self._next_sync = interval.steps or _FIRST_STEPS
        self._capture_seconds = 0.0

    @property
    def is_sync_due(self) -> bool:
        """Whether the ranks synchronise now; the same on all of them."""
        return self._steps_done >= self._next_sync

    def advance(self, steps: int) -> None:
        """Count completed steps."""
        self._steps_done += steps

    def plan(self, write_seconds: float) -> tuple[bool, int]:
        """Decide, on rank 0, whether to save at this sync, and how many steps later to synchronise again.

        Args:
            write_seconds: Seconds that writing the last checkpoint took.
        """
        now = self._now()
        elapsed = now - self._last_save
        is_due = self._interval.is_due(elapsed)
        seconds_per_step = (now - self._last_sync) / max(1, self._steps_done - self._last_sync_step)
        cost = self._capture_seconds + write_seconds
        steps = self._interval.steps_until_next(seconds_per_step, 0.0 if is_due else elapsed, cost)
        if self._interval.steps is None:
            steps = self._distance = max(1, min(steps, self._distance * _MAX_GROWTH))
        return is_due, steps

    def schedule(self, steps: int) -> None:
        """End a sync; the next one follows after this number of steps."""
        self._last_sync, self._last_sync_step = self._now(), self._steps_done
        self._next_sync = self._steps_done + steps

    def saved(self, capture_seconds: float) -> None:
        """Record that a checkpoint has just been captured, at a sync or at the end of an epoch."""
        self._last_save, self._capture_seconds = self._now(), capture_seconds

    def epoch_saved(self) -> None:
        """Restart an interval in steps from the checkpoint at the end of an epoch."""
        if self._interval.steps is not None:
            self._next_sync = self._steps_done + self._interval.steps
