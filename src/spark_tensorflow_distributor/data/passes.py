"""How one pass over a share is cut into batches, so that all ranks take the same number of steps. Pure.

No two shares differ by more than one row (``agent.shares``).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PassPlan:
    """One pass of one rank.

    Attributes:
        steps: batches, the same number on every rank.
        batch: rows of a batch of this rank, but for the last one.
        rows: how many of the share's rows it takes; the order of rows changes, so others are left out each time.
        shift: rows that the last batch takes from the one before it, so as not to be empty.
    """

    steps: int
    batch: int
    rows: int
    shift: int = 0

    @property
    def is_even(self) -> bool:
        """Whether all batches have the same number of rows."""
        return not self.shift and self.rows == self.steps * self.batch

    def size(self, step: int) -> int:
        """Rows of this rank's batch at a step."""
        return self.start(step + 1) - self.start(step)

    def start(self, step: int) -> int:
        """The first row of this rank's batch at a step, in the order of the pass."""
        if step == self.steps:
            return self.rows
        return step * self.batch - (self.shift if step == self.steps - 1 else 0)


def whole_pass(rows: int, total: int, world_size: int, batch: int) -> PassPlan:
    """Every row once: for evaluation and prediction.

    The ranks' last batches may differ by a row. One is empty only where there are fewer rows than workers, or a batch
    is one row.

    Args:
        rows: of this rank.
        total: rows of all ranks.
        world_size: number of ranks.
        batch: rows a rank and step.
    """
    steps = -(-total // (batch * world_size))
    is_last_empty = steps > 1 and batch > 1 and rows == (steps - 1) * batch
    return PassPlan(steps, batch, rows, shift=int(is_last_empty))


def equal_pass(total: int, world_size: int, batch: int, *, drop_remainder: bool) -> PassPlan:
    """The same number of rows on every rank at every step: for training.

    Gradients are averaged over the ranks, so that unequal parts would not weigh alike. Fewer than ``world_size`` rows
    of all are left out, or with ``drop_remainder`` fewer than a global batch.

    Args:
        total: rows of all ranks.
        world_size: number of ranks.
        batch: rows a rank and step.
        drop_remainder: no smaller batch at the end.
    """
    steps, left = divmod(total, batch * world_size)
    last = 0 if drop_remainder else left // world_size
    return PassPlan(steps + (last > 0), batch, steps * batch + last)
