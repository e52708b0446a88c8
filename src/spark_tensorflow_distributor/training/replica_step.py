"""A Keras step on one replica, which computes as if it were alone, and what it must know about the other replicas."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from .batch_parts import BatchPart, first_with_rows, has_any_rows, row_count
from .collectives import Collectives
from .loss_weighting import LossWeighting
from .row_choice import is_of_variables

_state = threading.local()


class ReplicaStep:
    """One step, while it is traced or executed eagerly.

    Args:
        part: The rows that the replica works on.
        collectives: Connects this replica to the others.
    """

    def __init__(self, part: BatchPart, collectives: Collectives) -> None:
        self.part, self.collectives = part, collectives
        self._graph = tf.compat.v1.get_default_graph()
        self._batch_fraction: tf.Tensor | None = None
        self.loss_weighting = LossWeighting()
        # Values of metric variables before the step, by the variable's id; empty if the step is known to count.
        self.metrics_before: dict[int, tf.Tensor] = {}

    @property
    def counts(self) -> bool | tf.Tensor:
        """Whether the step counts in metrics; a boolean scalar if this is not known while the step is traced.

        If every replica has the whole batch, only the first replica's step counts.
        """
        if self.part.is_idle:
            return False
        if self.part.is_whole is False or self.collectives.rank == 0:
            return True
        return False if self.part.is_whole is True else tf.logical_not(self.part.is_whole)

    @property
    def rows(self) -> tf.Tensor:
        """The replica's number of rows; int64 scalar."""
        return row_count(first_with_rows(self.part.batch))

    @property
    def replicas(self) -> int:
        """The number of replicas."""
        return self.collectives.world_size

    def batch_fraction(self) -> tf.Tensor:
        """Return the replica's weight: its fraction of the rows of the global batch; float64 scalar.

        The fractions of all replicas add up to 1. If every replica has the whole batch, they are equal.
        """
        if self._batch_fraction is None:
            # The first caller may be in a branch or loop of the step, whose tensors cannot be used elsewhere.
            with contextlib.nullcontext() if tf.executing_eagerly() else self._graph.as_default():
                self._batch_fraction = self._compute_batch_fraction()
        return self._batch_fraction

    def _compute_batch_fraction(self) -> tf.Tensor:
        part, equal = self.part, tf.constant(1 / self.replicas, tf.float64)
        if part.is_even or part.is_whole is True:
            return equal
        if part.global_rows is None and not has_any_rows(part.batch):
            return equal
        rows = tf.zeros((), tf.float64) if part.is_idle else tf.cast(self.rows, tf.float64)
        if part.global_rows is None:
            return tf.math.divide_no_nan(rows, self.collectives.all_reduce(rows))
        fraction = rows / tf.cast(part.global_rows, tf.float64)
        return fraction if part.is_whole is False else tf.where(part.is_whole, equal, fraction)

    def of_rows(self, value: tf.Tensor) -> tf.Tensor:
        """Return a value computed from the replica's rows, but zero if it has none: a mean of no rows is NaN.

        A worker has no rows in the last batch of an evaluation if its shard is smaller than others, or is empty.
        """
        if self.part.is_even or self.part.is_whole is True or not has_any_rows(self.part.batch):
            return value
        return tf.where(self.rows > 0, value, tf.zeros_like(value))

    def counts_rows(self, size: Any, tensor: tf.Tensor) -> bool:
        """Return whether the first dimension of a tensor counts rows, or several entries per row.

        The first dimension of weights or positions does not: it is known although the number of rows is not, or it is
        not a multiple of that number, or the tensor is computed from variables alone.

        Args:
            size: The dimension; anything but an int if it is not known while the step is traced.
            tensor: The tensor, or for numbers that are yet to be drawn, the tensor that they are for.
        """
        rows = first_with_rows(self.part.batch).shape[0] if has_any_rows(self.part.batch) else None
        if not isinstance(size, int):
            return True
        return rows is not None and size % max(rows, 1) == 0 and not is_of_variables(tensor)

    def weighted(self, gradient: tf.Tensor, reduce_op: tf.distribute.ReduceOp) -> tf.Tensor:
        """Return the gradient with respect to this replica's input to a reduction over the replicas.

        Args:
            gradient: This replica's gradient with respect to the reduction's result.
            reduce_op: The reduction.
        """
        if self.loss_weighting.is_pending:
            total = self.collectives.all_reduce(gradient)
        else:
            fraction = tf.cast(self.batch_fraction(), gradient.dtype)
            total = tf.math.divide_no_nan(self.collectives.all_reduce(gradient * fraction), fraction)
        return total / self.replicas if reduce_op == tf.distribute.ReduceOp.MEAN else total

    def positions(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the index of the replica's first row in the global batch, and the batch's rows; int64 scalars."""
        if self.part.begin is not None and self.part.global_rows is not None:
            return self.part.begin, self.part.global_rows
        # Each worker has rows of its own. Positions then only select random numbers, so they may be approximate.
        return self.rows * self.collectives.rank, self.rows * self.replicas


@contextlib.contextmanager
def in_step(step: ReplicaStep | None) -> Iterator[None]:
    """Make ``step`` the current step of this thread."""
    before, _state.step = current_step(), step
    try:
        yield
    finally:
        _state.step = before


def current_step() -> ReplicaStep | None:
    """Return the Keras step that this thread is running; None outside of Keras' steps, as in custom loops."""
    step: ReplicaStep | None = getattr(_state, "step", None)
    return step


# The model method that is running ("" if none), and the arguments of in_method.
_method: contextvars.ContextVar[str] = contextvars.ContextVar("method", default="")
_divides_batches: contextvars.ContextVar[bool] = contextvars.ContextVar("divides_batches", default=True)
_gets_parts: contextvars.ContextVar[bool] = contextvars.ContextVar("gets_parts", default=True)


@contextlib.contextmanager
def in_method(name: str, *, gets_parts: bool = True, divides_batches: bool = True) -> Iterator[None]:
    """Mark that a model method is running, so that its steps run as steps of replicas.

    Args:
        name: ``fit``, ``evaluate``, ``predict`` or the name of a method for a single batch.
        gets_parts: Whether the method's loop is given parts of batches rather than the batches of its dataset.
        divides_batches: Whether a batch that reaches a step is global, so that the replica takes its part of it. If
            false, each worker has rows of its own.
    """
    tokens = _method.set(name), _divides_batches.set(divides_batches), _gets_parts.set(gets_parts)
    try:
        yield
    finally:
        _method.reset(tokens[0])
        _divides_batches.reset(tokens[1])
        _gets_parts.reset(tokens[2])


def current_method() -> str:
    """Return the name of the model method that is running; "" if there is none."""
    return _method.get()


def divides_batches() -> bool:
    """Return whether a batch that reaches a step is global; see :func:`in_method`."""
    return _divides_batches.get()


def gets_parts() -> bool:
    """Return whether the loop of the current method is given parts of batches; see :func:`in_method`."""
    return _gets_parts.get()


def batch_fraction(value: Any) -> tf.Tensor | None:
    """Return the current step's batch fraction, cast to the dtype of ``value``; None outside of a step."""
    step = current_step()
    return None if step is None else tf.cast(step.batch_fraction(), tf.convert_to_tensor(value).dtype)


# Whether this worker computes alone, without the others.
_is_alone: contextvars.ContextVar[bool] = contextvars.ContextVar("is_alone", default=False)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Treat this worker's replica as the only one within the context."""
    token = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(token)


def is_alone() -> bool:
    """Return whether this worker computes by itself; see :func:`alone`."""
    return _is_alone.get()
