"""Determines whether the other workers make the same call to ``fit``, ``evaluate`` or ``predict``.

Every worker announces its calls to the driver before it makes them. If the others do not join an ``evaluate`` or
``predict``, the worker computes it alone, which its plain variables allow. A call that needs all workers starts only
once all of them have announced it, except on the library's own collectives, which detect different calls themselves.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from .calls_alone import by_itself, same_randomness
from .fit_hooks import Hook, MethodCall, only
from .own_rows import has_marked_rows
from .replica import replica_strategy
from .replica_step import is_alone
from .tf_collectives import collectives_of

# Number of rows that are sampled to tell arrays apart.
_SAMPLE_ROWS = 64


def announce_calls(
    ask: Callable[[Mapping[str, Any]], tuple[int, str]],
    leave: Callable[[int], None],
    call_site: Callable[[], tuple[str, int]],
    rank: int,
    world_size: int,
) -> Hook:
    """Return a hook that announces calls, and makes a call alone if the other workers do not join it.

    Args:
        ask: Announces a call; returns the call's number, and whether to make it ``"together"`` or ``"alone"``.
        leave: Announces that the call with the given number has ended.
        call_site: Returns the line of the program that makes the call, and a number that identifies its call stack.
        rank: This worker's rank.
        world_size: The number of workers.
    """

    @only("fit", "evaluate", "predict")
    @contextlib.contextmanager
    def announced(call: MethodCall) -> Iterator[None]:
        strategy = call.model.distribute_strategy
        spans_workers = (
            isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
            and collectives_of(strategy, rank, world_size).world_size > 1
        )
        if not spans_workers or is_alone() or call.is_validation:  # all workers validate
            yield
            return
        line, stack = call_site()
        may_be_alone = call.name != "fit" and can_be_computed_alone(call)
        key = f"{call.name} {stack} {_fingerprint(call)}" if may_be_alone else call.name
        number, answer = ask(
            {
                "method": call.name,
                "key": key,
                "line": line,
                "may_be_alone": may_be_alone,
                "is_nested": call.outer is not None,
            }
        )
        try:
            if answer == "alone":
                with by_itself(call.model), same_randomness(call.model):
                    yield
            else:
                yield
        finally:
            leave(number)

    return announced


def can_be_computed_alone(call: MethodCall) -> bool:
    """Return whether this worker has all rows of a call's data, and the whole model."""
    data = call.arguments.get("x")
    if replica_strategy(call.model.distribute_strategy) is None or has_marked_rows(data):
        return False
    if isinstance(data, tf.data.Dataset):
        policies = tf.data.experimental.AutoShardPolicy
        policy = data.options().experimental_distribute.auto_shard_policy
        return policy not in (policies.OFF, policies.FILE, policies.HINT)
    return not isinstance(data, tf.distribute.DistributedDataset)


def _fingerprint(call: MethodCall) -> int:
    """Return a checksum that distinguishes the data of different calls."""
    parts = [_description(each) for name in ("x", "y") for each in tf.nest.flatten(call.arguments.get(name))]
    parts += [str(call.arguments.get(name)) for name in ("batch_size", "steps")]
    return zlib.crc32(" ".join(parts).encode())


def _description(data: Any) -> str:
    if isinstance(data, tf.data.Dataset):
        return f"{data.element_spec} {int(data.cardinality())}"
    if isinstance(data, tf.Tensor | np.ndarray) and len(data.shape):
        rows = data[:: max(1, int(data.shape[0]) // _SAMPLE_ROWS)]
        values = np.ascontiguousarray(rows)
        sample = zlib.crc32(values.tobytes()) if values.dtype.kind in "biufc" else str(values[:1])
        return f"{data.dtype} {data.shape} {sample}"
    return f"{type(data).__name__} {len(data) if hasattr(data, '__len__') else ''}"
