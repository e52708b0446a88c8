"""At which step the ranks meet next, and whether they save a checkpoint there. Pure.

All ranks have to save at the same step, but their clocks differ. So whenever the ranks meet, rank 0 converts the
remaining seconds into steps and announces the step of the next meeting.
"""

import time
from collections.abc import Callable

from .interval import CheckpointInterval

# Steps until the first meeting of a fit, whose speed is not known yet.
_FIRST_STEPS = 10
# The speed of training may change, so the distance between meetings grows by at most this factor each time.
_MAX_GROWTH = 8


class SaveClock:
    """Paces the checkpoints of one ``fit``.

    Args:
        interval: How often checkpoints are wanted.
        now: A monotonic clock, in seconds.
    """

    def __init__(self, interval: CheckpointInterval, now: Callable[[], float] = time.monotonic) -> None:
        self._interval, self._now = interval, now
        self._steps_done = self._last_meeting_step = 0
        self._last_meeting = self._last_save = now()
        self._distance = _FIRST_STEPS
        self._next_meeting = interval.steps or _FIRST_STEPS
        self._capture_seconds = 0.0

    @property
    def is_meeting_due(self) -> bool:
        """Whether the ranks meet now; the same on all of them."""
        return self._steps_done >= self._next_meeting

    def advance(self, steps: int) -> None:
        """Count completed steps."""
        self._steps_done += steps

    def plan(self, write_seconds: float) -> tuple[bool, int]:
        """Decide, on rank 0, whether to save at this meeting, and how many steps later to meet again.

        Args:
            write_seconds: Seconds that writing the last checkpoint took.
        """
        now = self._now()
        elapsed = now - self._last_save
        is_due = self._interval.is_due(elapsed)
        seconds_per_step = (now - self._last_meeting) / max(1, self._steps_done - self._last_meeting_step)
        cost = self._capture_seconds + write_seconds
        steps = self._interval.steps_until_next(seconds_per_step, 0.0 if is_due else elapsed, cost)
        if self._interval.steps is None:
            steps = self._distance = max(1, min(steps, self._distance * _MAX_GROWTH))
        return is_due, steps

    def schedule(self, steps: int) -> None:
        """End a meeting; the next one is after this number of steps."""
        self._last_meeting, self._last_meeting_step = self._now(), self._steps_done
        self._next_meeting = self._steps_done + steps

    def saved(self, capture_seconds: float) -> None:
        """Record that a checkpoint was captured just now, at a meeting or at the end of an epoch."""
        self._last_save, self._capture_seconds = self._now(), capture_seconds

    def epoch_saved(self) -> None:
        """Count an interval in steps from the checkpoint at the end of an epoch."""
        if self._interval.steps is not None:
            self._next_meeting = self._steps_done + self._interval.steps
