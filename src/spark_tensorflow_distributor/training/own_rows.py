"""Datasets of rows that only this worker has, because their options say so."""

from __future__ import annotations

import logging
from typing import Any

import tensorflow as tf

from ..data.passes import shard_states_of
from ..data.transformations import KEEP_ORDER, MAPS, argument_of_batch, inputs_of
from .batch_parts import first_with_rows, row_count
from .collectives import Collectives
from .private_names import DATA_DISTRIBUTE

_log = logging.getLogger(__name__)

# Marks a dataset whose rows belong to this worker alone. The value tells whether Keras would know its length in one
# process.
_OWN_ROWS = "_spark_tensorflow_distributor_own_rows"

# How well a batch size is known: from the only batch, which may be a remainder; from several batches, or an argument
# that a function may have changed; for certain.
GUESSED, LIKELY, CERTAIN = range(3)


def rows_of_worker(dataset: tf.data.Dataset, collectives: Collectives) -> tf.data.Dataset:
    """Return a dataset unchanged, or this worker's rows of it if its options say that workers read different rows.

    Args:
        dataset: A dataset of global batches.
        collectives: Connects this worker to the others.
    """
    policies = tf.data.experimental.AutoShardPolicy
    policy, has_length = dataset.options().experimental_distribute.auto_shard_policy, has_known_length(dataset)
    if policy in (policies.FILE, policies.HINT):
        dataset = DATA_DISTRIBUTE.load()._AutoShardDataset(dataset, collectives.world_size, collectives.rank)
    elif policy != policies.OFF:
        return dataset
    return own_rows(dataset, collectives, has_length=has_length)


def own_rows(dataset: tf.data.Dataset, collectives: Collectives, *, has_length: bool = True) -> tf.data.Dataset:
    """Rebatch a dataset of a worker's own rows to the size of the worker's part of a global batch.

    The workers may have different numbers of rows, so the number of steps is not known in advance.

    Args:
        dataset: A dataset of this worker's rows, in batches of the global batch size.
        collectives: Connects this worker to the others.
        has_length: Whether the dataset that the program has passed has a known length.
    """
    declared = tf.constant([_known_batch_size(dataset), has_length], tf.int64)
    known = collectives.all_gather(declared).numpy()
    batch = int(known[:, 0].max()) or _batch_size_of_all(dataset, collectives)
    parts = dataset.rebatch(-(-batch // collectives.world_size))
    parts = parts.filter(lambda *_: True)  # makes its length unknown
    # In one process, all rows together have a length that is known if those of each worker have.
    setattr(parts, _OWN_ROWS, bool(known[:, 1].all()))
    return parts


def _batch_size_of_all(dataset: tf.data.Dataset, collectives: Collectives) -> int:
    """Return the global batch size that the workers' first batches show."""
    found = collectives.all_gather(tf.constant(_batch_size(dataset), tf.int64)).numpy()
    certain = found[found[:, 1] == CERTAIN]
    # The largest, because the only batch of a worker with few rows may be a remainder.
    batch = int((certain if len(certain) else found)[:, 0].max())
    if collectives.rank == 0 and (found[:, 1] == GUESSED).all():
        _log.warning(
            "Each worker has rows of its own (AutoShardPolicy.OFF, FILE or HINT), but no more than one batch of them, "
            "and nothing else shows the batch size. It is taken to be %d, the most rows in any of these batches. If "
            "they are remainders of larger batches, the steps are too small: make batches with Dataset.batch(), with "
            "drop_remainder=True if a function is mapped over them, rather than in a generator or with window().",
            batch,
        )
    return batch


def _known_batch_size(dataset: tf.data.Dataset) -> int:
    """Return the batch size that a dataset declares; 0 if only its batches show it."""
    shape = next((leaf.shape for leaf in tf.nest.flatten(dataset.element_spec) if leaf.shape.rank), None)
    if shape is not None and shape[0] is not None:
        return int(shape[0])
    argument, kinds = argument_of_batch(dataset)
    return 0 if kinds & MAPS else argument


def _batch_size(dataset: tf.data.Dataset) -> tuple[int, int]:
    """Read the first batches of a dataset; return the batch size, and how well it is known."""
    argument, kinds = argument_of_batch(dataset)
    # A generator, or a function in map(), chooses the number of rows, which only a full batch shows: the first one of
    # several.
    sizes = _sizes(dataset, 2)
    if len(sizes) < 2:
        size = max(argument, *sizes, 1)
        return size, LIKELY if size == argument else GUESSED
    return max(sizes), CERTAIN if argument and kinds <= MAPS | KEEP_ORDER else LIKELY


def _sizes(dataset: tf.data.Dataset, count: int) -> list[int]:
    """Return the number of rows in each of the first batches."""
    return [int(row_count(first_with_rows(batch))) for batch in dataset.take(count)]


def has_marked_rows(dataset: Any) -> bool:
    """Return whether a dataset holds this worker's rows alone.

    It does if it derives from a shard or a result of :func:`own_rows`: for class weights, Keras appends a ``map``.
    """
    return _mark_of(dataset) is not None or bool(shard_states_of(dataset))


def has_known_length(dataset: Any) -> bool:
    """Return whether Keras would know the length of a dataset in one process."""
    mark = _mark_of(dataset)
    return int(dataset.cardinality()) != tf.data.UNKNOWN_CARDINALITY if mark is None else mark


def _mark_of(dataset: Any) -> bool | None:
    """Return the mark of the result of :func:`own_rows` from which a dataset derives; None if there is none."""
    waiting, seen = [dataset], set()
    while waiting:
        each = waiting.pop()
        if hasattr(each, _OWN_ROWS):
            return bool(getattr(each, _OWN_ROWS))
        if id(each) not in seen:
            seen.add(id(each))
            waiting += inputs_of(each)
    return None
