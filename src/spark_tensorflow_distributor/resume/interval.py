"""When the next checkpoint is due, in steps. Pure.

The ranks have to save at the same step, and their clocks differ. So rank 0 turns seconds into steps whenever the ranks
meet for a checkpoint anyway, and tells them the step at which they meet next.
"""

from dataclasses import dataclass

# The first meeting of a fit, where nothing is known of its speed yet.
_FIRST_STEPS = 10
# The time of steps may change: the number of steps grows by this factor a meeting at most.
_GROWTH = 8
# Checkpoints may take at most this part of the time: training stands still, or a core is busy beside it.
_MOST_COST = 0.01


@dataclass
class CheckpointInterval:
    """Either of the two.

    Attributes:
        seconds: between two checkpoints, about.
        steps: between two checkpoints.
    """

    seconds: float | None = None
    steps: int | None = None
    _last: int = _FIRST_STEPS

    @property
    def first(self) -> int:
        """Steps to the first meeting."""
        return self.steps or _FIRST_STEPS

    def steps_until_next(self, seconds_a_step: float, since_commit: float, cost: float) -> int:
        """Steps to the next meeting.

        Args:
            seconds_a_step: since the meeting before.
            since_commit: seconds since the last checkpoint of this fit, or its beginning.
            cost: seconds that the last checkpoint took, until it was written.
        """
        if self.steps:
            return self.steps
        interval = max(self.seconds or 0.0, cost / _MOST_COST)
        left = max(interval - since_commit, 0.0) or interval
        steps = int(left / max(seconds_a_step, 1e-6)) or 1
        self._last = max(1, min(steps, self._last * _GROWTH))
        return self._last

    def is_due(self, since_commit: float) -> bool:
        """Whether a meeting is one for a checkpoint, or only to tell the next step."""
        return bool(self.steps) or since_commit >= 0.9 * (self.seconds or 0.0)


def parse(every: float | str) -> CheckpointInterval:
    """From the runner's ``checkpoint_every``: seconds, or ``"500 steps"``.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(every, str):
        count, _, unit = every.strip().partition(" ")
        if unit.strip() not in ("step", "steps") or not count.isdigit() or not int(count):
            raise ValueError(every)
        return CheckpointInterval(steps=int(count))
    if isinstance(every, bool) or not isinstance(every, int | float) or not every > 0:
        raise ValueError(every)
    return CheckpointInterval(seconds=float(every))
