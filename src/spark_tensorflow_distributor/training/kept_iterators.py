"""Keeps iterators of ``tf.distribute`` alive after their last use.

TensorFlow's iterator for devices occasionally crashes the process if it is destroyed while its thread is fetching the
next batch. Keras, which knows how many batches an epoch has, drops the iterator without asking for the end; on a busy
machine, the thread may then still be waiting for it.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

# The iterators of the last two passes, such as those of an epoch and its validation: when the next one begins, the
# thread of the oldest has long finished.
_KEPT = 2
# How many batches TensorFlow has read in advance, at most, when nobody reads on.
_IN_ADVANCE = 3


def last_iterators() -> deque[Any]:
    """Return a place for iterators that keeps as many as have to outlive their last use."""
    return deque(maxlen=_KEPT)


def keep_iterators(distributed: Any, kept: deque[Any]) -> Any:
    """Make a distributed dataset add its iterators to ``kept``."""

    class Kept(type(distributed)):  # type: ignore[misc]
        def __iter__(self) -> Iterator[Any]:
            iterator = super().__iter__()
            kept.append(iterator)
            return iterator  # type: ignore[no-any-return]

    distributed.__class__ = Kept
    return distributed


class LocalStrategy(tf.distribute.MultiWorkerMirroredStrategy):  # type: ignore[misc]
    """The strategy of ``local_mode``: TensorFlow's own, for this process's devices, as in 1.0.0."""

    def __init__(self) -> None:
        super().__init__()
        self._finite, self._other = last_iterators(), last_iterators()

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        is_finite = isinstance(dataset, tf.data.Dataset) and int(dataset.cardinality()) >= 0
        distributed = super().experimental_distribute_dataset(dataset, options)
        return keep_iterators(distributed, self._finite if is_finite else self._other)

    def distribute_datasets_from_function(self, dataset_fn: Any, options: Any = None) -> Any:
        return keep_iterators(super().distribute_datasets_from_function(dataset_fn, options), self._other)

    def release(self) -> None:
        """Let go of the iterators, which hold on to the data, at the end of the run.

        After Keras has read all batches of a finite dataset, an iterator only has to report the end. Others are not
        asked: a generator may wait for its next row forever.
        """
        for iterator in self._finite:
            with contextlib.suppress(Exception):  # the end, or an error in rows for which nobody has asked
                for _ in range(_IN_ADVANCE):
                    next(iterator)
        self._finite.clear()
        self._other.clear()
