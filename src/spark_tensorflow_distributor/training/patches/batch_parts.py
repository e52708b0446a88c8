"""A global batch, and the part of it that a replica has."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

_state = threading.local()


class Part(NamedTuple):
    """Args:
    batch: the replica's rows, in the structure of the batch.
    begin: the first of them in the whole batch; int64 scalar.
    rows: of the whole batch; int64 scalar.
    """

    batch: Any
    begin: Any
    rows: Any


@contextlib.contextmanager
def working_on(part: Part) -> Iterator[None]:
    """While a step is traced, or executed eagerly."""
    before, _state.part = present_part(), part
    try:
        yield
    finally:
        _state.part = before


def present_part() -> Part | None:
    """The part that this thread's step works on; None in a custom loop, in ``train_on_batch``, and outside of steps."""
    part: Part | None = getattr(_state, "part", None)
    return part


def part_of(batch: Any, replica: int, replicas: int) -> Part:
    """Cut a replica's rows out of a batch: as many for each, and one more for the first ones where it does not divide.

    Args:
        batch: tensors, also sparse or ragged, of equal first dimensions; anything else is left as it is.
        replica: from 0.
        replicas: of all workers.
    """
    import tensorflow as tf

    leaves = [leaf for leaf in tf.nest.flatten(batch) if _has_rows(leaf)]
    first = leaves[0]
    known = first.shape[0]
    if known is not None and known % replicas == 0:
        count = known // replicas
        begin, end, rows = replica * count, (replica + 1) * count, known
    else:
        count = None
        rows = _row_count(tf, first)
        each, more = rows // replicas, rows % replicas
        begin = replica * each + tf.minimum(tf.constant(replica, tf.int64), more)
        end = begin + each + tf.cast(replica < more, tf.int64)

    def rows_of(leaf: Any) -> Any:
        if not _has_rows(leaf):
            return leaf
        if isinstance(leaf, tf.SparseTensor):
            size = tf.concat([tf.reshape(tf.cast(end - begin, tf.int64), [1]), leaf.dense_shape[1:]], axis=0)
            start = tf.concat([tf.reshape(tf.cast(begin, tf.int64), [1]), tf.zeros_like(leaf.dense_shape[1:])], axis=0)
            return tf.sparse.slice(leaf, start, size)
        return leaf[begin:end]

    return Part(
        tf.nest.map_structure(rows_of, batch), tf.constant(begin, tf.int64) if count else begin, tf.cast(rows, tf.int64)
    )


def rows_of_part(part: Part) -> Any:
    """The replica's number of rows; int64 scalar."""
    import tensorflow as tf

    return _row_count(tf, next(leaf for leaf in tf.nest.flatten(part.batch) if _has_rows(leaf)))


def is_of_no_row(shape: Any) -> bool:
    """Whether random numbers of the shape, a tuple or a tensor or None, are meant for all rows alike."""
    return isinstance(shape, tuple | list) and isinstance(shape[0], int) and shape[0] == 1


def _row_count(tf: Any, leaf: Any) -> Any:
    return leaf.nrows() if isinstance(leaf, tf.RaggedTensor) else tf.shape(leaf, out_type=tf.int64)[0]


def _has_rows(leaf: Any) -> bool:
    return getattr(leaf, "shape", None) is not None and leaf.shape.rank != 0
