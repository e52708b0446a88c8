"""Keeps iterators of ``tf.distribute`` alive after their last use.

TensorFlow's iterator for devices occasionally crashes the process if it is destroyed while its thread is fetching the
next batch. Keras, which knows how many batches an epoch has, drops the iterator without asking for the end; on a busy
machine, the thread may then still be waiting for it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

# The iterators of the last two passes, such as those of an epoch and its validation: when the next one begins, the
# thread of the oldest has long finished.
_KEPT = 2
# How many seconds the threads of the last iterators have to finish. Reading on would not help: it makes the thread of
# an iterator with more batches fetch the next one.
_PAUSE = 0.1


def last_iterators() -> deque[Any]:
    """Return a deque that keeps the last two iterators alive."""
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
    """The strategy of ``local_mode`` with several GPUs: TensorFlow's own, for this process's devices, as in 1.0.0."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: deque[Any] | None = last_iterators()

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        return self._keep(super().experimental_distribute_dataset(dataset, options))

    def distribute_datasets_from_function(self, dataset_fn: Any, options: Any = None) -> Any:
        return self._keep(super().distribute_datasets_from_function(dataset_fn, options))

    def _keep(self, distributed: Any) -> Any:
        return distributed if self._kept is None else keep_iterators(distributed, self._kept)

    def release(self) -> None:
        """Let go of the iterators, which hold on to the data, at the end of the run.

        A model that the run returns still has this strategy; what it reads later is not kept.
        """
        kept, self._kept = self._kept, None
        if kept:
            time.sleep(_PAUSE)
            kept.clear()
