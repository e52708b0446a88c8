"""Decides how often checkpoints are saved. Pure."""

import math
from dataclasses import dataclass

# Checkpoints may take at most this fraction of the time; meanwhile, training pauses or shares a core with the writer.
_MAX_COST = 0.01


@dataclass(frozen=True)
class CheckpointInterval:
    """The distance between two checkpoints of ``fit``; exactly one of the attributes is set.

    Attributes:
        seconds: Seconds between two checkpoints, approximately.
        steps: Steps between two checkpoints.
    """

    seconds: float | None = None
    steps: int | None = None

    @classmethod
    def parse(cls, value: object) -> "CheckpointInterval":
        """Parse the runner's ``checkpoint_every``: seconds, or a string such as ``"500 steps"``.

        Raises:
            ValueError: If the value is neither, or is not positive and finite.
        """
        if isinstance(value, str):
            count, _, unit = value.strip().partition(" ")
            if unit.strip() not in ("step", "steps") or not count.isdigit() or not int(count):
                raise ValueError(value)
            return cls(steps=int(count))
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(value)
        return cls(seconds=float(value))

    def is_due(self, elapsed: float) -> bool:
        """Return whether to save a checkpoint now, ``elapsed`` seconds after the last one.

        With an interval in steps, a checkpoint is always due: the ranks synchronise only at those steps.
        """
        return self.steps is not None or elapsed >= 0.9 * (self.seconds or 0.0)

    def steps_until_next(self, seconds_per_step: float, elapsed: float, cost: float) -> int:
        """Return the number of steps until the next checkpoint.

        Args:
            seconds_per_step: The current time per training step.
            elapsed: Seconds since the last checkpoint.
            cost: Seconds that the last checkpoint took, from capturing the state until the file was written.
        """
        if self.steps is not None:
            return self.steps
        interval = max(self.seconds or 0.0, cost / _MAX_COST)
        remaining = max(interval - elapsed, 0.0) or interval
        return int(remaining / max(seconds_per_step, 1e-6)) or 1


DEFAULT_INTERVAL = CheckpointInterval(seconds=30.0)
