"""Divides a pass over a shard into batches, so that all ranks take the same number of steps. Pure.

No two shards differ by more than one row (see ``balance``).
"""

import zlib
from dataclasses import dataclass, field
from typing import Any

from .transformations import MAPS, inputs_of, kind_of


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

    It has as many steps as :func:`equal_pass`. The last batch also gets the rows that :func:`equal_pass` leaves out, at
    most one on each rank. A batch is empty only if there are fewer rows than workers.

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
class FitPasses:
    """The passes of one ``fit`` over a shard's dataset.

    Their numbers depend only on the position of the fit, so a fit that resumes gets the same orders.

    Attributes:
        plan: The plan of all passes.
        first: The number of the first pass.
        first_epoch: The epoch of the first pass.
        per_epoch: The number of passes in an epoch. None with ``steps_per_epoch``: a pass may then extend over several
            epochs.
        epoch: The current epoch; None if nobody announces the epochs, as for a ``fit`` inside another one.
        begun: The number of passes that have begun in this epoch, or in this fit if there is no current epoch.
    """

    plan: PassPlan
    first: int
    first_epoch: int
    per_epoch: int | None
    epoch: int | None = None
    begun: int = 0

    def begin_epoch(self, epoch: int) -> None:
        """Note that the next pass is the first one of this epoch."""
        if self.per_epoch is not None:
            self.epoch, self.begun = epoch, 0

    def next_number(self) -> int:
        """Return the number of the next pass."""
        begun, self.begun = self.begun, self.begun + 1
        if self.per_epoch is None or self.epoch is None:
            return self.first + begun
        # Keras may create an iterator for an epoch and discard it after a few batches; the next one begins anew.
        return self.first + (self.epoch - self.first_epoch) * self.per_epoch + begun % self.per_epoch


@dataclass
class ShardState:
    """The state of a shard's dataset, which :func:`shard_states_of` finds in any dataset derived from it.

    Attributes:
        name: The name of the shard.
        global_batch: Number of rows per step on all workers together.
        whole: The plan of passes that use every row; the same as ``equal`` for a dataset that only trains.
        equal: The plan of passes in which all ranks use equally many rows.
        first_pass: The number of the first pass.
        next_pass: The number of the next pass outside of ``fit``.
        next_fit: The number of the first pass of the next ``fit``. Passes outside of ``fit`` do not count, because a
            run that resumes does not repeat those that callbacks have made.
        fit: The passes of the ``fit`` that is training on the dataset now.
    """

    name: str
    global_batch: int
    whole: PassPlan
    equal: PassPlan
    first_pass: int = 0
    next_pass: int = field(init=False)
    next_fit: int = field(init=False)
    fit: FitPasses | None = None

    def __post_init__(self) -> None:
        self.next_pass = self.next_fit = self.first_pass

    @property
    def plan(self) -> PassPlan:
        """The plan of the next pass."""
        return self.whole if self.fit is None else self.fit.plan

    def begin_pass(self) -> tuple[PassPlan, int]:
        """Return the plan and the number of the next pass."""
        if self.fit is not None:
            return self.fit.plan, self.fit.next_number()
        number, self.next_pass = self.next_pass, self.next_pass + 1
        return self.whole, number

    def new_fit(self, plan: PassPlan, epochs: range, batches: int, steps_per_epoch: int | None) -> FitPasses:
        """Return the passes of a new ``fit``, which continue the numbers of earlier ones.

        All of its passes are counted now, even if it will end early: a run that resumes does not repeat complete fits,
        and must give the next one the same numbers.

        Args:
            plan: The plan of the passes.
            epochs: The epochs to train.
            batches: The number of batches in the dataset that is passed to ``fit``; negative if unknown or infinite.
            steps_per_epoch: The argument of ``fit``.
        """
        first = self.next_fit
        if steps_per_epoch:
            self.next_fit += -(-len(epochs) * steps_per_epoch // plan.steps)
            return FitPasses(plan, first, epochs.start, None)
        per_epoch = max(-(-batches // plan.steps), 1)
        # A fit that begins with a later epoch continues earlier ones, perhaps of another process.
        first = max(first, self.first_pass + epochs.start * per_epoch)
        self.next_fit = first + len(epochs) * per_epoch
        return FitPasses(plan, first, epochs.start, per_epoch)


# Transformations that yield the batches of their input in the same order.
_KEEP_BATCHES = {"PrefetchDataset", "OptionsDataset", "RepeatDataset"}


def yields_batches_of(dataset: Any, state: ShardState, *, mapped: bool = False) -> bool:
    """Return whether a dataset's elements are the batches of one shard, in order.

    Args:
        dataset: A dataset that derives from a shard.
        state: The shard's state.
        mapped: Whether a function may have changed the batches, perhaps their number of rows.
    """
    names = _KEEP_BATCHES | MAPS if mapped else _KEEP_BATCHES
    while getattr(dataset, "shard_state", None) is not state:
        if kind_of(dataset) not in names:
            return False
        (dataset,) = inputs_of(dataset)
    return True


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
        else:
            waiting += inputs_of(each)
    return found
