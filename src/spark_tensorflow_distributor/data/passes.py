"""Divides a pass over a shard into batches, so that all ranks take the same number of steps. Pure.

No two shards differ by more than one row (see ``balance``).
"""

import zlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PassPlan:
    """One pass of one rank.

    Attributes:
        steps: The number of batches, the same on every rank.
        batch: Number of rows in each of this rank's batches except the last one.
        rows: Number of the shard's rows that the pass uses. The order changes, so each pass leaves out different rows.
        is_even: Whether all batches of all ranks have ``batch`` rows; the same on every rank.
    """

    steps: int
    batch: int
    rows: int
    is_even: bool


def whole_pass(rows: int, total: int, world_size: int, batch: int) -> PassPlan:
    """Plan a pass that uses every row once, for evaluation and prediction.

    It has as many steps as :func:`equal_pass`, whose last batch gets the rows that would be left out: at most one on
    each rank. A batch is empty only if there are fewer rows than workers.

    Args:
        rows: Number of rows on this rank.
        total: Rows of all ranks.
        world_size: The number of ranks.
        batch: Rows per rank and step.
    """
    equal = equal_pass(total, world_size, batch, drop_remainder=False)
    return PassPlan(max(equal.steps, 1), batch, rows, is_even=equal.is_even and equal.rows * world_size == total)


def equal_pass(total: int, world_size: int, batch: int, *, drop_remainder: bool) -> PassPlan:
    """Plan a pass in which every rank uses the same number of rows at every step, for training.

    Gradients are averaged over the ranks, so rows would have unequal weights if the ranks' batches differed in size.
    The pass leaves out fewer than ``world_size`` rows in total, or with ``drop_remainder``, fewer than a global batch.

    Args:
        total: Rows of all ranks.
        world_size: The number of ranks.
        batch: Rows per rank and step.
        drop_remainder: Whether to leave out a smaller final batch.
    """
    steps, left = divmod(total, batch * world_size)
    last = 0 if drop_remainder else left // world_size
    return PassPlan(steps + (last > 0), batch, steps * batch + last, is_even=not last)


def batch_bounds(step: Any, steps: Any, rows: Any, batch: int, xp: Any) -> tuple[Any, Any]:
    """Return the first row of a step's batch and the row after its last one, in the order of the pass.

    Args:
        step: The step, or an array of steps.
        steps, rows, batch: The attributes of a :class:`PassPlan`.
        xp: The module to compute with: TensorFlow in a dataset's graph, or NumPy.
    """
    start = step * batch
    return start, xp.where(step < steps - 1, start + batch, rows)


@dataclass(frozen=True)
class PassOrder:
    """A random order of a shard's rows for every pass.

    Attributes:
        rows: Number of rows in the shard.
        seed: The seed of all orders.
        shard: The number of the shard; different shards get different orders.
    """

    rows: int
    seed: int
    shard: int

    def key(self, number: int) -> list[int]:
        """Return the two numbers that determine the order of the pass with this number."""
        text = f"{self.seed} {self.shard} {number}".encode()
        return [zlib.crc32(text + bytes([index])) for index in range(2)]


@dataclass
class ShardState:
    """The state of a shard's dataset, which :func:`shard_states_of` finds in any dataset derived from it.

    Attributes:
        name: The name of the shard.
        global_batch: Number of rows per step on all workers together.
        whole: The plan of passes that use every row; the same as ``equal`` for a dataset that only trains.
        equal: The plan of passes in which all ranks use equally many rows.
        is_training: Whether the next pass follows ``equal`` rather than ``whole``.
        first_pass: The number of the first pass.
        next_pass: The number of the next pass.
        epoch: The epoch of ``fit`` that the next pass belongs to, which determines the pass's number. None outside of
            ``fit``, and with ``steps_per_epoch``.
    """

    name: str
    global_batch: int
    whole: PassPlan
    equal: PassPlan
    is_training: bool = False
    first_pass: int = 0
    next_pass: int = 0
    epoch: int | None = None

    def begin_pass(self) -> tuple[PassPlan, int]:
        """Return the plan and the number of the next pass."""
        number, self.next_pass = self.next_pass, self.next_pass + 1
        if self.is_training and self.epoch is not None:
            number = self.first_pass + self.epoch
        return self.equal if self.is_training else self.whole, number


def shard_states_of(dataset: Any) -> list[ShardState]:
    """Return the states of the shards from which a dataset derives through any number of transformations."""
    found: list[ShardState] = []
    waiting, seen = [dataset], set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if hasattr(each, "shard_state"):
            found.append(each.shard_state)
        elif hasattr(each, "_inputs"):
            waiting += each._inputs()
    return found
