"""Divides the data of Keras' loops into the parts that this worker's replica works on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from ..data.passes import shard_states_of, yields_batches_of
from ..errors import DataError
from ..formatting import rank_list
from .batch_parts import BatchPart, DividedRows, EvenRows, OwnRows, divided_rows, part_of
from .collectives import Collectives
from .device_data import to_device
from .own_rows import has_known_length, has_marked_rows
from .replica import ReplicaStrategy
from .replica_step import gets_parts
from .same_batches import sample_of, warn_if_different, warn_if_undivided


class PartDataset:
    """The iterable that replaces Keras' dataset and yields :class:`BatchPart` objects.

    Args:
        strategy: The strategy of all workers.
        dataset: A dataset of global batches, of a shard, or of this worker's own rows.
        steps_per_epoch: The argument of ``fit``; None if it was not passed.
        batches: The number of batches; None if Keras does not know it.
        prefetched: How many global batches to read in advance.

    Raises:
        DataError: If the workers have datasets of different lengths.
    """

    def __init__(
        self,
        strategy: ReplicaStrategy,
        dataset: tf.data.Dataset,
        steps_per_epoch: int | None = None,
        batches: int | None = None,
        prefetched: int = 2,
    ) -> None:
        self._collectives = strategy.collectives
        self.element_spec = dataset.element_spec
        cardinality = int(dataset.cardinality())
        self._is_divided = gets_parts() and not has_marked_rows(dataset)
        self._is_plain = not gets_parts()
        has_length = batches is not None or has_known_length(dataset)
        self._asks_others = False
        self._is_even = has_equal_batches(dataset, strategy.collectives)
        if self._is_divided:
            check_agreement(strategy.collectives, [steps_per_epoch, batches, cardinality])
            self._asks_others = batches is None and cardinality == tf.data.UNKNOWN_CARDINALITY
            dataset, self._is_even = divide(dataset, strategy.collectives, prefetched)
        elif not self._is_even:
            self._asks_others = cardinality == tf.data.UNKNOWN_CARDINALITY
        self._ended = None if has_length else _of_parts(dataset, self._is_divided, self._is_even).take(0)
        self._dataset = to_device(dataset, strategy.extended.worker_devices[0])

    def __iter__(self) -> Iterator[Any]:
        if self._is_plain:
            return iter(self._dataset)
        return PartIterator(
            iter(self._dataset),
            self._collectives,
            is_divided=self._is_divided,
            is_even=self._is_even,
            asks=self._asks_others,
            ended=self._ended,
        )


class PartIterator:
    """Yields the replica's parts of the batches.

    Args:
        batches: Iterator over this worker's batches; over :class:`DividedRows` if ``is_divided``.
        collectives: Connects this worker to the others.
        is_divided: Whether the batches are parts of global batches.
        is_even: Whether all replicas are known to have the same number of rows in each batch.
        asks: Whether the workers ask each other before each step whether data is left.
        ended: A dataset of no parts if Keras finds the end of the data only within a step; None if it knows the length.

    Attributes:
        last_part: The last part that any iterator has yielded; None before the first one.
    """

    last_part: ClassVar[BatchPart | None] = None

    def __init__(
        self,
        batches: Iterator[Any],
        collectives: Collectives,
        *,
        is_divided: bool,
        is_even: bool,
        asks: bool,
        ended: tf.data.Dataset | None = None,
    ) -> None:
        self._batches: Any = batches
        self._collectives = collectives
        self._is_divided, self._is_even, self._asks_others, self._ended = is_divided, is_even, asks, ended
        self._count = 0
        self._last: Any = None

    def __iter__(self) -> PartIterator:
        return self

    def __next__(self) -> BatchPart:
        batch = next(self._batches, None)
        is_idle = False
        if self._asks_others:
            has_data = self._collectives.all_gather(tf.constant(batch is not None)).numpy()
            is_idle = batch is None and bool(has_data.any())
            if is_idle or (self._is_divided and has_data.any() and not has_data.all()):
                batch = self._continue_without(has_data)
        if batch is None:
            raise StopIteration
        if self._is_divided and not self._count:
            warn_if_different(batch.sample, self._collectives)
        self._count += 1
        self._last = batch
        part = PartIterator.last_part = self._part(batch, is_idle)
        return part

    @property
    def ended_iterator(self) -> tf.data.Iterator | None:
        """An iterator of parts that has ended, if Keras finds the end of the data only within a step; else None."""
        return None if self._ended is None else iter(self._ended)

    @property
    def element_spec(self) -> Any:
        """The structure of the batches."""
        return self._batches.element_spec

    def spec_of(self, part: BatchPart) -> BatchPart:
        """Return a copy of the part with type specifications instead of tensors."""
        if not self._is_divided:
            return part._replace(batch=self.element_spec)
        spec = self.element_spec
        return part._replace(batch=spec.batch, begin=spec.begin, global_rows=spec.global_rows)

    def _part(self, batch: Any, is_idle: bool) -> BatchPart:
        if not self._is_divided:
            return BatchPart(batch, is_even=self._is_even, is_idle=is_idle)
        if self._is_even:
            return BatchPart(batch.batch, batch.begin, batch.global_rows, is_even=True)
        is_whole = bool(batch.is_whole)
        if is_whole and self._collectives.rank == 0:
            warn_if_undivided(int(batch.global_rows), self._collectives.world_size)
        return BatchPart(batch.batch, batch.begin, batch.global_rows, is_whole)

    def _continue_without(self, has_data: np.ndarray) -> Any:
        """Return the last batch again, for a step that does not count, because only other workers have rows left.

        Args:
            has_data: Whether each rank has data; bool, [world_size].

        Raises:
            DataError: If all workers should have the same data, or if this one has had none.
        """
        ended = rank_list([rank for rank, has in enumerate(has_data) if not has])
        if self._is_divided:
            raise DataError(
                f"The data of {ended} ended after {self._count} steps, but that of other ranks did not. fit, "
                "evaluate and predict take the same data in global batches on all workers, and each worker processes "
                "its part of each batch. Give all workers the whole data, or say that each one has rows of its own "
                "with options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF, or "
                "pass a DataFrame to run() and have each worker read its shard with to_tf()."
            )
        if self._last is None:
            raise DataError(
                f"Rank {self._collectives.rank} has no data: its dataset is empty. Give each worker at least one batch."
            )
        return self._last


def _of_parts(dataset: tf.data.Dataset, is_divided: bool, is_even: bool) -> tf.data.Dataset:
    """Return a dataset whose elements a step recognises as parts."""
    if is_divided:
        return dataset  # of DividedRows
    kind, is_tuple = EvenRows if is_even else OwnRows, isinstance(dataset.element_spec, tuple)
    return dataset.map(tf.autograph.experimental.do_not_convert(lambda *batch: kind(batch if is_tuple else batch[0])))


def has_equal_batches(dataset: tf.data.Dataset, collectives: Collectives) -> bool:
    """Return whether every rank's batches of a shard have the same number of rows at each step.

    They do if they are a shard's own batches in an equal pass, or if their size is static. A function in ``map`` may
    change the number of rows. Shards may differ by a row, so a rank cannot infer this from its own. Every rank must
    call this for a shard's dataset.
    """
    states = shard_states_of(dataset)
    if not states:
        return False
    is_equal = states[0].plan == states[0].equal and yields_batches_of(dataset, states[0])
    shapes = [leaf.shape for leaf in tf.nest.flatten(dataset.element_spec) if leaf.shape.rank]
    rows, length = (shapes[0][0] if shapes else None) or 0, int(dataset.cardinality())
    found = collectives.all_gather(tf.constant([is_equal, rows, length], tf.int64)).numpy()
    are_static = rows and length != tf.data.UNKNOWN_CARDINALITY and (found[:, 1:] == found[0, 1:]).all()
    return bool(found[:, 0].all() or are_static)


def divide(dataset: tf.data.Dataset, collectives: Collectives, prefetched: int = 2) -> tuple[tf.data.Dataset, bool]:
    """Divide each global batch of a dataset.

    Args:
        dataset: A dataset of global batches.
        collectives: Connects this worker to the others.
        prefetched: How many batches to read in advance.

    Returns:
        A dataset of :class:`DividedRows`, and whether all replicas have the same number of rows in every batch.
    """
    is_even = False

    def part(*batch: Any) -> DividedRows:
        nonlocal is_even
        whole = batch if isinstance(dataset.element_spec, tuple) else batch[0]
        part = part_of(whole, collectives.rank, collectives.world_size)
        is_even = part.is_even
        return divided_rows(part, sample_of(whole))

    parts = dataset.map(tf.autograph.experimental.do_not_convert(part))
    options = tf.data.Options()
    # The autotuning thread can delay the destruction of an iterator, and so the end of fit, by up to half a minute.
    options.autotune.enabled = False
    parts = parts.prefetch(prefetched) if prefetched else parts
    return parts.with_options(options), is_even


def check_agreement(collectives: Collectives, length: list[int | None]) -> None:
    """Check that all workers have data of the same length.

    Args:
        collectives: Connects this worker to the others.
        length: ``steps_per_epoch``, Keras' number of batches (each None if unknown), and the dataset's cardinality.

    Raises:
        DataError: If the lengths differ.
    """
    found = [json.loads(each) for each in collectives.gather_bytes(json.dumps(length).encode())]
    if all(each == found[0] for each in found):
        return
    lengths = ", ".join(f"rank {rank}: {_length(*each)}" for rank, each in enumerate(found))
    raise DataError(
        f"The workers were given data of different lengths ({lengths}). fit, evaluate and predict take the same data "
        "in global batches on all workers, and each worker processes its part of each batch; with different lengths, "
        "some would wait for steps that the others never make. Give all workers the whole data, or say that each one "
        "has rows of its own with "
        "options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF, or pass a "
        "DataFrame to run() and have each worker read its shard with to_tf()."
    )


def _length(steps_per_epoch: int | None, batches: int | None, cardinality: int) -> str:
    if steps_per_epoch:
        return f"{steps_per_epoch} steps"
    return f"{batches} batches" if batches is not None else "unknown"
