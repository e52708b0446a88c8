"""Strategies, real and not."""

import contextlib
import types
from typing import Any


def spans_workers(tf: Any, strategy: Any) -> bool:
    """Whether the strategy is of several workers: it then has more replicas than devices here."""
    known = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    return known and bool(strategy.num_replicas_in_sync > len(strategy.extended.worker_devices))


def probe_strategy(tf: Any) -> Any:
    """Passes for a strategy of two workers, and notes the axis of each reduction; a real one would wait for peers."""

    class ProbeStrategy(tf.distribute.MultiWorkerMirroredStrategy):  # type: ignore[misc]
        num_replicas_in_sync = 2
        scope = contextlib.nullcontext
        extended = types.SimpleNamespace(_in_multi_worker_mode=lambda: True, worker_devices=("/device:CPU:0",))

        def __init__(self) -> None:
            self.axes: list[Any] = []

        def reduce(self, reduce_op: Any, value: Any, axis: Any = None) -> Any:
            self.axes.append(axis)
            return value

        def experimental_local_results(self, value: Any) -> Any:
            return getattr(value, "values", (value,))

    return ProbeStrategy()
