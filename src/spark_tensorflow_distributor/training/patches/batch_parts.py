"""A replica's part of a global batch."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf

_state = threading.local()


class BatchPart(NamedTuple):
    """The rows of a global batch that one replica works on.

    Attributes:
        batch: The replica's rows, in the structure of the batch.
        begin: Index of the first of them in the global batch; int64 scalar.
        global_rows: Number of rows in the global batch; int64 scalar.
    """

    batch: Any
    begin: tf.Tensor
    global_rows: tf.Tensor


@contextlib.contextmanager
def working_on(part: BatchPart) -> Iterator[None]:
    """Make ``part`` the current one while a step is traced or executed eagerly."""
    before, _state.part = current_part(), part
    try:
        yield
    finally:
        _state.part = before


def current_part() -> BatchPart | None:
    """Return the part that this thread's step works on.

    None in a custom loop, in ``train_on_batch``, and outside of steps.
    """
    part: BatchPart | None = getattr(_state, "part", None)
    return part


def part_of(batch: Any, replica: int, replicas: int) -> BatchPart:
    """Cut a replica's rows out of a batch: equally many for each, and the remainder goes to the first ones.

    Args:
        batch: Tensors, sparse and ragged ones included, of equal first dimensions; anything else is left unchanged.
        replica: From 0.
        replicas: Of all workers.
    """
    first = next(leaf for leaf in tf.nest.flatten(batch) if _has_rows(leaf))
    static_rows = first.shape[0]
    if static_rows is not None and static_rows % replicas == 0:
        count = static_rows // replicas
        begin, end, global_rows = replica * count, (replica + 1) * count, static_rows
    else:
        count = None
        global_rows = _row_count(first)
        each, remainder = global_rows // replicas, global_rows % replicas
        begin = replica * each + tf.minimum(tf.constant(replica, tf.int64), remainder)
        end = begin + each + tf.cast(replica < remainder, tf.int64)

    def rows_of(leaf: Any) -> Any:
        if not _has_rows(leaf):
            return leaf
        if isinstance(leaf, tf.SparseTensor):
            size = tf.concat([tf.reshape(tf.cast(end - begin, tf.int64), [1]), leaf.dense_shape[1:]], axis=0)
            start = tf.concat([tf.reshape(tf.cast(begin, tf.int64), [1]), tf.zeros_like(leaf.dense_shape[1:])], axis=0)
            return tf.sparse.slice(leaf, start, size)
        return leaf[begin:end]

    return BatchPart(
        tf.nest.map_structure(rows_of, batch),
        tf.constant(begin, tf.int64) if count else begin,
        tf.cast(global_rows, tf.int64),
    )


def rows_in_part(part: BatchPart) -> tf.Tensor:
    """Return the replica's number of rows; int64 scalar."""
    return _row_count(next(leaf for leaf in tf.nest.flatten(part.batch) if _has_rows(leaf)))


def is_same_for_all_rows(shape: Any) -> bool:
    """Return whether random numbers of this shape (a sequence, a tensor or None) are meant for all rows alike."""
    return isinstance(shape, tuple | list) and isinstance(shape[0], int) and shape[0] == 1


def _row_count(leaf: Any) -> tf.Tensor:
    return leaf.nrows() if isinstance(leaf, tf.RaggedTensor) else tf.shape(leaf, out_type=tf.int64)[0]


def _has_rows(leaf: Any) -> bool:
    return getattr(leaf, "shape", None) is not None and leaf.shape.rank != 0
