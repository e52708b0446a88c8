"""Checks that all workers have the same global batches, of which each worker trains on its part.

Batches differ, for example, if a worker has drawn random numbers that the others have not, and therefore shuffles in
another order. The lengths of the data are still the same, so only its content shows the difference.
"""

from __future__ import annotations

import logging
import zlib
from typing import Any

import tensorflow as tf

from .collectives import Collectives

_log = logging.getLogger(__name__)

# A sample is enough: in two random orders, the first rows hardly ever have the same values.
_ROWS = 8
_VALUES_PER_ROW = 64


def sample_of(batch: Any) -> tf.Tensor:
    """Return a hash of some values of a batch; int64 scalar.

    Labels are preferred, because features are often augmented at random, in different ways on each worker.
    """
    has_labels = isinstance(batch, tuple) and len(batch) > 1
    leaves = tf.nest.flatten(batch[1] if has_labels and tf.nest.flatten(batch[1]) else batch)
    dense = [leaf for leaf in leaves if isinstance(leaf, tf.Tensor) and leaf.shape.rank]
    texts = [tf.io.serialize_tensor(leaf[_sample_index(leaf.shape)]) for leaf in dense]
    return tf.strings.to_hash_bucket_fast(tf.strings.join(texts), 1 << 62) if texts else tf.constant(0, tf.int64)


def _sample_index(shape: tf.TensorShape) -> tuple[slice | int, ...]:
    """Return the index of the first values in the middle of the first rows."""
    if shape.rank == 1:
        return (slice(_ROWS),)
    middle = [(size or 0) // 2 for size in shape[1:-1]]
    return (slice(_ROWS), *middle, slice(_VALUES_PER_ROW))


def warn_if_different(sample: tf.Tensor, collectives: Collectives) -> None:
    """Warn on the chief if the workers' samples differ; every rank must call this eagerly."""
    found = collectives.all_gather(sample).numpy()
    if collectives.rank == 0 and len(set(found.tolist())) > 1:
        _log.warning(
            "The workers' global batches differ: ranks 0 and %d do not have the same rows in the same order. Each of "
            "them trains on its part of each batch, so some rows are used several times and others not at all. This "
            "happens if some workers draw random numbers, shuffle or create models that the others do not. Do that on "
            "all workers, or pass a seed to shuffle(). If each worker has rows of its own, set "
            "options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF.",
            next(rank for rank, each in enumerate(found.tolist()) if each != found[0]),
        )


def identical_on_all(batch: Any, collectives: Collectives) -> bool:
    """Return whether all workers have the same batch, by checksum; every rank must call this eagerly."""
    values = [leaf.numpy() for leaf in tf.nest.flatten(batch, expand_composites=True) if leaf is not None]
    checksum = 0
    for value in values:
        checksum = zlib.crc32(value.tobytes() if value.dtype != object else repr(value.tolist()).encode(), checksum)
    found = collectives.all_gather(tf.constant(checksum, tf.int64)).numpy()
    return bool((found == checksum).all())


_has_warned = False


def warn_if_undivided(rows: int, replicas: int) -> None:
    """Warn, once, that all workers compute the whole of each batch although the batches have enough rows to share.

    Args:
        rows: Rows of the batch's first tensor; 0 if none of its tensors has rows.
        replicas: Number of replicas on all workers.
    """
    global _has_warned
    if _has_warned or 0 < rows < replicas:
        return
    _has_warned = True
    _log.warning(
        "The batches cannot be divided among the workers: their tensors differ in their numbers of rows, or one is a "
        "scalar or of unknown rank (after tf.py_function, call set_shape). Every worker therefore computes whole "
        "batches. The numbers are those of one process, but training is not faster."
    )
