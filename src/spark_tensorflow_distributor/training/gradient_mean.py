"""Combines the gradients of all replicas, at the boundary between a step and the optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from .collectives import Collectives
from .replica import ReplicaStrategy, replica_strategy
from .replica_step import current_step
from .row_choice import is_chosen_by_rows, joined_lookups, lookups_of

# An index is encoded as three digits of 12 bits.
_BASE = 1 << 12
_PLACES = (_BASE**2, _BASE, 1)

# The number of rows per replica: an int if it is known statically, else a tensor, [replicas].
RowCounts: TypeAlias = "int | tf.Tensor"


def combined_gradients(
    strategy: ReplicaStrategy, optimizer: object, gradients: Sequence[Any], variables: Sequence[Any]
) -> list[Any]:
    """Return the gradients of the whole batch.

    In a step of Keras, each replica has the gradient of a mean over its rows; the mean of these gradients, weighted by
    rows, is the gradient of the mean over all rows. In a function passed to ``Strategy.run``, gradients are summed, as
    in ``tf.distribute``. In any other loop, all workers compute the same gradients, and their mean equals each of them.

    Args:
        strategy: The strategy of all workers.
        optimizer: The optimizer that will apply the gradients.
        gradients: Tensors or IndexedSlices; None stays None.
        variables: The variable of each gradient.
    """
    step, collectives = current_step(), strategy.collectives
    if step is not None:
        scale = None if step.loss_weighting.covers(optimizer, gradients) else step.batch_fraction()
    elif tf.distribute.get_replica_context() is not None:
        scale = None
    else:
        scale = tf.constant(1 / collectives.world_size, tf.float64)
    return _Combination(collectives, scale).combine(gradients, variables)


@contextlib.contextmanager
def already_combined(strategy: ReplicaStrategy) -> Iterator[None]:
    """Disable reductions of the replica context while an optimizer applies combined gradients."""
    extended = strategy.extended
    before, extended.is_reduced = extended.is_reduced, True
    try:
        yield
    finally:
        extended.is_reduced = before


def strategy_to_combine() -> ReplicaStrategy | None:
    """Return the strategy whose workers must combine their gradients now; None if there is nothing to combine."""
    strategy = replica_strategy()
    return None if strategy is None or strategy.extended.is_reduced else strategy


def _counted(gradient: tf.IndexedSlices) -> tf.IndexedSlices:
    """Return the rows of a sparse gradient that count, and correct their scale.

    If every replica has the whole batch, only the first replica's rows count, at full scale. Several copies of a row,
    each divided by the number of replicas, would differ from it in norm and in squares.
    """
    step = current_step()
    if step is None or (step.counts is True and step.part.is_whole is False):
        return gradient
    rows = tf.where(step.counts, tf.shape(gradient.values)[0], 0)
    times = tf.cast(tf.where(step.part.is_whole, step.replicas, 1), gradient.dtype)
    return tf.IndexedSlices(gradient.values[:rows] * times, gradient.indices[:rows], gradient.dense_shape)


class _Combination:
    """One combination of gradients.

    Args:
        collectives: Connects this worker to the others.
        scale: Factor for this worker's gradients before they are summed; float64 scalar, None for 1.
    """

    def __init__(self, collectives: Collectives, scale: tf.Tensor | None) -> None:
        self._collectives, self._scale = collectives, scale

    def combine(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        lookups = [lookups_of(each) for each in gradients]
        pairs = [(each, variable) for group, variable in zip(lookups, variables, strict=True) for each in group]
        results = iter(self._combine([each for each, _ in pairs], [variable for _, variable in pairs]))
        return [joined_lookups([next(results) for _ in group]) for group in lookups]

    def _combine(self, gradients: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
        gradients = list(gradients)
        results = list(gradients)
        dense: list[tuple[int, tf.Tensor]] = []
        slices: list[int] = []
        for index, (gradient, variable) in enumerate(zip(gradients, variables, strict=True)):
            if gradient is None:
                continue
            if getattr(variable, "overwrite_with_gradient", False):
                # Not a gradient but the variable's next value, a scale for quantised products. Use the largest one.
                results[index] = tf.reduce_max(self._collectives.all_gather(tf.convert_to_tensor(gradient)), axis=0)
            elif not isinstance(gradient, tf.IndexedSlices):
                dense.append((index, tf.convert_to_tensor(gradient)))
            elif not is_chosen_by_rows(gradient.indices):
                dense.append((index, gradient.values))
            else:
                gradients[index] = gradient = _counted(gradient)
                if gradient.dtype == tf.float32:
                    slices.append(index)
                else:
                    results[index] = self._gathered(gradient)
        counts_of = dict(zip(slices, self._row_counts([gradients[index] for index in slices]), strict=True))
        for index, counts in counts_of.items():
            dense.append((index, self._spread(gradients[index], counts)))
        for index, total in self._summed(dense, counts_of.keys()):
            gradient = gradients[index]
            if index in counts_of:
                results[index] = self._collected(total, gradient, counts_of[index])
            elif isinstance(gradient, tf.IndexedSlices):
                results[index] = tf.IndexedSlices(total, gradient.indices, gradient.dense_shape)
            else:
                results[index] = total
        return results

    def _summed(self, tensors: list[tuple[int, tf.Tensor]], spread: Container[int]) -> Iterator[tuple[int, tf.Tensor]]:
        """Yield the weighted sums of the gradients of all replicas, with the gradients' numbers.

        Args:
            tensors: The gradients with their numbers.
            spread: The numbers of the gradients that ``_spread`` encoded, whose indices must not be rounded.
        """
        order = tensors[::-1]  # the gradients of the last layers are available first
        groups = [(order, False)]
        if self._collectives.compresses_gradients:
            dense = [each for each in order if each[0] not in spread]
            groups = [(dense, True), ([each for each in order if each[0] in spread], False)]
        for group, may_be_compressed in groups:
            sums = self._collectives.all_reduce_packed(
                [tensor for _, tensor in group], self._scale, compress=may_be_compressed
            )
            yield from zip((index for index, _ in group), sums, strict=True)

    def _gathered(self, slices: tf.IndexedSlices) -> tf.IndexedSlices:
        values = slices.values if self._scale is None else slices.values * tf.cast(self._scale, slices.dtype)
        gather = self._collectives.gather_rows
        return tf.IndexedSlices(gather(values), gather(slices.indices), slices.dense_shape)

    def _row_counts(self, slices: list[tf.IndexedSlices]) -> list[RowCounts]:
        """Return, for each gradient, the number of rows on each replica."""
        step = current_step()
        # Workers may have different parts of a batch, and each one knows the shapes of its own part only.
        is_even = step is not None and step.part.is_even
        counts: list[Any] = [each.values.shape[0] if is_even else None for each in slices]
        unknown = [index for index, count in enumerate(counts) if count is None]
        if unknown:
            local = tf.stack([tf.shape(slices[index].values)[0] for index in unknown])
            found = tf.transpose(self._collectives.all_gather(local))
            for index, of_replicas in zip(unknown, tf.unstack(found, num=len(unknown)), strict=True):
                counts[index] = of_replicas
        return counts

    def _spread(self, slices: tf.IndexedSlices, counts: RowCounts) -> tf.Tensor:
        """Return this replica's rows at its own position among zeros, so that the sum over replicas holds all rows.

        The shape is [replicas, rows, width + 3]. Each index is encoded as three numbers of 12 bits, which float32
        represents exactly even after scaling. Rows with the same index stay separate, because in one process, too,
        optimizers such as Adam square each row by itself.
        """
        rows = tf.reshape(slices.values, [tf.shape(slices.values)[0], slices.values.shape[1:].num_elements()])
        indices = tf.cast(slices.indices, tf.int64)
        digits = tf.cast(tf.stack([indices // place % _BASE for place in _PLACES], axis=1), tf.float32)
        if self._scale is not None:
            digits /= tf.cast(self._scale, tf.float32)  # the reduction multiplies everything by it
        most = counts if isinstance(counts, int) else tf.reduce_max(counts)
        padded = tf.pad(tf.concat([rows, digits], axis=1), [[0, most - tf.shape(rows)[0]], [0, 0]])
        position = tf.one_hot(self._collectives.rank, self._collectives.world_size)
        result = position[:, tf.newaxis, tf.newaxis] * padded
        if isinstance(counts, int):
            result = tf.ensure_shape(result, [self._collectives.world_size, counts, rows.shape[1] + 3])
        return result

    def _collected(self, summed: tf.Tensor, slices: tf.IndexedSlices, counts: RowCounts) -> tf.IndexedSlices:
        """Return the IndexedSlices of all replicas, given the sum of their ``_spread`` tensors."""
        if isinstance(counts, int):
            rows = tf.reshape(summed, [-1, summed.shape[-1]])
        else:
            rows = tf.boolean_mask(summed, tf.sequence_mask(counts, tf.shape(summed)[1]))
        digits = tf.cast(tf.round(rows[:, -3:]), tf.int64)
        indices = tf.cast(tf.reduce_sum(digits * _PLACES, axis=1), slices.indices.dtype)
        shape = tf.concat([[-1], tf.shape(slices.values)[1:]], axis=0)
        return tf.IndexedSlices(tf.reshape(rows[:, :-3], shape), indices, slices.dense_shape)
