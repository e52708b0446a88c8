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
        is_whole: Whether every replica has the whole batch, because the batch has fewer rows than there are replicas or
            cannot be divided. A bool if this is known while the step is traced, otherwise a boolean scalar.
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


class DividedRows(NamedTuple):
    """A replica's rows of a global batch, as an element of a dataset; see :class:`BatchPart`.

    Attributes:
        batch, begin, global_rows: As in a part.
        is_whole: Boolean scalar.
        sample: See ``same_batches.sample_of``.
    """

    batch: Any
    begin: tf.Tensor
    global_rows: tf.Tensor
    is_whole: tf.Tensor
    sample: tf.Tensor


class OwnRows(NamedTuple):
    """Rows that only this worker has, as an element of a dataset."""

    batch: Any


class EvenRows(NamedTuple):
    """Rows that only this worker has, the same number on every worker, as an element of a dataset."""

    batch: Any


def divided_rows(part: BatchPart, sample: tf.Tensor) -> DividedRows:
    """Return a part as an element of a dataset."""
    return DividedRows(part.batch, part.begin, part.global_rows, tf.convert_to_tensor(part.is_whole), sample)


def as_part(element: Any) -> BatchPart | None:
    """Convert an element of a dataset to a part; return None if it is not an instance of a class above."""
    if isinstance(element, BatchPart):
        return element
    if isinstance(element, DividedRows):
        return BatchPart(element.batch, element.begin, element.global_rows, element.is_whole)
    return (
        BatchPart(element.batch, is_even=isinstance(element, EvenRows))
        if isinstance(element, OwnRows | EvenRows)
        else None
    )


def part_of(batch: Any, replica: int, replicas: int) -> BatchPart:
    """Cut a replica's rows out of a batch; if they do not divide evenly, the first replicas get one more row each.

    Many operations do not support zero rows. Therefore, if a batch has fewer rows than there are replicas, each replica
    gets the whole batch. The same applies if the batch cannot be divided: if its tensors differ in their numbers of
    rows, or one is a scalar or of unknown rank.

    Args:
        batch: A structure of dense, sparse or ragged tensors. Leaves that are not tensors are left unchanged.
        replica: Index of the replica, from 0.
        replicas: Number of replicas on all workers.
    """
    tensors = [leaf for leaf in tf.nest.flatten(batch) if getattr(leaf, "shape", None) is not None]
    if not tensors or not all(map(_has_rows, tensors)):
        return _whole(batch)
    known = {leaf.shape[0] for leaf in tensors}
    if None in known:
        return _unevenly(batch, tensors, replica, replicas)
    if len(known) > 1 or min(known) < replicas:
        return _whole(batch)
    (rows,) = known
    if rows % replicas:
        return _unevenly(batch, tensors, replica, replicas)
    begin, end = rows // replicas * replica, rows // replicas * (replica + 1)
    part = tf.nest.map_structure(lambda leaf: _rows_of(leaf, begin, end), batch)
    return BatchPart(part, tf.constant(begin, tf.int64), tf.constant(rows, tf.int64), is_even=True)


def _whole(batch: Any) -> BatchPart:
    global_rows = row_count(first_with_rows(batch)) if has_any_rows(batch) else tf.constant(0, tf.int64)
    return BatchPart(batch, tf.constant(0, tf.int64), global_rows, is_whole=True)


def _unevenly(batch: Any, tensors: list[Any], replica: int, replicas: int) -> BatchPart:
    """Cut a batch whose number of rows is unknown or does not divide evenly."""
    counts = [row_count(leaf) for leaf in tensors]
    global_rows = counts[0]
    is_whole: bool | tf.Tensor = False
    if any(leaf.shape[0] is None for leaf in tensors):
        is_whole = tf.logical_or(global_rows < replicas, tf.reduce_any(tf.stack(counts) != global_rows))
    each, remainder = global_rows // replicas, global_rows % replicas
    begin = replica * each + tf.minimum(tf.constant(replica, tf.int64), remainder)
    end = begin + each + tf.cast(replica < remainder, tf.int64)
    if is_whole is False:
        part = tf.nest.map_structure(lambda leaf: _rows_of(leaf, begin, end), batch)
        return BatchPart(part, begin, global_rows)
    begin = tf.where(is_whole, tf.zeros_like(begin), begin)
    part = tf.nest.map_structure(lambda leaf: _rows_of(leaf, begin, end, is_whole), batch)
    return BatchPart(part, begin, global_rows, is_whole)


def _rows_of(leaf: Any, begin: Any, end: Any, is_whole: bool | tf.Tensor = False) -> Any:
    if not _has_rows(leaf):
        return leaf
    if is_whole is not False:
        end = tf.where(is_whole, row_count(leaf), end)
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


def _has_rows(leaf: Any) -> bool:
    shape = getattr(leaf, "shape", None)
    return shape is not None and bool(tf.TensorShape(shape).rank)
