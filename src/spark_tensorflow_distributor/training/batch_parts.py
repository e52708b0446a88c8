"""A replica's part of a global batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf


class BatchPart(NamedTuple):
    """The rows of a global batch that one replica works on.

    Attributes:
        batch: The replica's rows, in the same structure as the global batch.
        begin: Index of the replica's first row in the global batch; int64 scalar. None if each worker has rows of its
            own.
        global_rows: Number of rows in the global batch; int64 scalar. None if each worker has rows of its own.
        is_whole: Whether every replica has the whole batch, because the batch has fewer rows than there are replicas. A
            bool if this is known while the step is traced, otherwise a boolean scalar.
        is_even: Whether every replica is known to have the same number of rows.
        is_idle: Whether this worker has no rows left while others have. ``batch`` is then an arbitrary batch, which
            does not count.
    """

    batch: Any
    begin: tf.Tensor | None = None
    global_rows: tf.Tensor | None = None
    is_whole: bool | tf.Tensor = False
    is_even: bool = False
    is_idle: bool = False


class CutRows(NamedTuple):
    """A replica's rows of a global batch, as an element of a dataset; see :class:`BatchPart`."""

    batch: Any
    begin: tf.Tensor
    global_rows: tf.Tensor


class OwnRows(NamedTuple):
    """Rows that only this worker has, as an element of a dataset."""

    batch: Any


class EvenRows(NamedTuple):
    """Rows that only this worker has, the same number on every worker, as an element of a dataset."""

    batch: Any


def as_part(element: Any, replicas: int) -> BatchPart | None:
    """Convert an element of a dataset to a part; return None if it is not an instance of a class above."""
    if isinstance(element, BatchPart):
        return element
    if isinstance(element, CutRows):
        return BatchPart(*element, is_whole=element.global_rows < replicas)
    return (
        BatchPart(element.batch, is_even=isinstance(element, EvenRows))
        if isinstance(element, OwnRows | EvenRows)
        else None
    )


def part_of(batch: Any, replica: int, replicas: int) -> BatchPart:
    """Cut a replica's rows out of a batch; if they do not divide evenly, the first replicas get one more row each.

    Many operations do not support zero rows. Therefore, if a batch has fewer rows than there are replicas, each replica
    gets the whole batch.

    Args:
        batch: A structure of dense, sparse or ragged tensors with the same first dimension. Other leaves are left
            unchanged.
        replica: Index of the replica, from 0.
        replicas: Number of replicas on all workers.

    Raises:
        ValueError: If the batch has no tensor with rows.
    """
    first = first_with_rows(batch)
    static_rows = first.shape[0]
    is_whole: bool | tf.Tensor
    if static_rows is not None and static_rows < replicas:
        return BatchPart(batch, tf.constant(0, tf.int64), tf.constant(static_rows, tf.int64), is_whole=True)
    if static_rows is not None and static_rows % replicas == 0:
        count = static_rows // replicas
        begin, end, global_rows, is_whole = replica * count, (replica + 1) * count, static_rows, False
    else:
        global_rows = row_count(first)
        each, remainder = global_rows // replicas, global_rows % replicas
        begin = replica * each + tf.minimum(tf.constant(replica, tf.int64), remainder)
        end = begin + each + tf.cast(replica < remainder, tf.int64)
        is_whole = False
        if static_rows is None:
            is_whole = global_rows < replicas
            begin, end = tf.where(is_whole, tf.zeros_like(begin), begin), tf.where(is_whole, global_rows, end)
    part = tf.nest.map_structure(lambda leaf: _rows_of(leaf, begin, end) if _has_rows(leaf) else leaf, batch)
    is_even = isinstance(begin, int)
    return BatchPart(part, tf.cast(begin, tf.int64), tf.cast(global_rows, tf.int64), is_whole, is_even)


def _rows_of(leaf: Any, begin: Any, end: Any) -> Any:
    if isinstance(leaf, tf.SparseTensor):
        size = tf.concat([tf.reshape(tf.cast(end - begin, tf.int64), [1]), leaf.dense_shape[1:]], axis=0)
        start = tf.concat([tf.reshape(tf.cast(begin, tf.int64), [1]), tf.zeros_like(leaf.dense_shape[1:])], axis=0)
        return tf.sparse.slice(leaf, start, size)
    return leaf[begin:end]


def first_with_rows(batch: Any) -> Any:
    """Return the first tensor of a batch that has rows.

    Raises:
        ValueError: If there is none.
    """
    for leaf in tf.nest.flatten(batch):
        if _has_rows(leaf):
            return leaf
    raise ValueError("the batch has no tensor with rows")


def row_count(leaf: Any) -> tf.Tensor:
    """Return the number of rows of a tensor; int64 scalar."""
    return leaf.nrows() if isinstance(leaf, tf.RaggedTensor) else tf.shape(leaf, out_type=tf.int64)[0]


def has_any_rows(batch: Any) -> bool:
    """Return whether a batch has a tensor with rows."""
    return any(map(_has_rows, tf.nest.flatten(batch)))


def has_rows(batch: Any) -> bool:
    """Return whether a batch can be cut into parts: it has tensors, none of them a scalar or of unknown rank."""
    shapes = [leaf.shape for leaf in tf.nest.flatten(batch) if getattr(leaf, "shape", None) is not None]
    return bool(shapes) and all(shape.rank not in (0, None) for shape in map(tf.TensorShape, shapes))


def _has_rows(leaf: Any) -> bool:
    return getattr(leaf, "shape", None) is not None and len(leaf.shape) > 0
