"""Recognises strategies of several workers, and stands in for one."""

from __future__ import annotations

import contextlib
import types
from typing import Any

import tensorflow as tf


def spans_workers(strategy: tf.distribute.Strategy | None) -> bool:
    """Return whether the strategy has several workers, and so more replicas than devices in this process."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and bool(
        strategy.num_replicas_in_sync > len(strategy.extended.worker_devices)
    )


def probe_strategy() -> Any:
    """Return a stand-in for a strategy of two workers, which records the axis of each reduction.

    A real one would wait for its peers.
    """

    class ProbeStrategy(tf.distribute.MultiWorkerMirroredStrategy):  # type: ignore[misc]
        num_replicas_in_sync = 2
        scope = contextlib.nullcontext
        extended = types.SimpleNamespace(_in_multi_worker_mode=lambda: True, worker_devices=("/device:CPU:0",))

        def __init__(self) -> None:
            self.axes: list[int | None] = []

        def reduce(self, reduce_op: object, value: Any, axis: int | None = None) -> Any:
            self.axes.append(axis)
            return value

        def experimental_local_results(self, value: Any) -> Any:
            return getattr(value, "values", (value,))

    return ProbeStrategy()
