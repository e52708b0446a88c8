"""Averages the state of layers that is not trained by gradients, and that each worker computes from its own rows."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from ..replica import replica_strategy
from ..variable_sync import checksum, is_numeric, is_partial_sum, plain_variable


def average_state(model: Any) -> None:
    """Average the non-trainable variables of a model that differ between workers.

    Every worker must call this. Integers are not averaged; all workers get the chief's.
    """
    _average(_differing(model), model)


@contextlib.contextmanager
def averaged_state(model: Any) -> Iterator[list[tuple[tf.Variable, Any]]]:
    """Average the state as :func:`average_state` does, within the context only; yield this worker's own values."""
    own = [(variable, variable.numpy()) for variable in _differing(model)]
    _average([variable for variable, _ in own], model)
    try:
        yield own
    finally:
        for variable, value in own:
            variable.assign(value)


def _average(variables: Sequence[tf.Variable], model: Any) -> None:
    strategy = replica_strategy(model.distribute_strategy)
    if strategy is None:
        return
    collectives = strategy.collectives
    floats = [variable for variable in variables if variable.dtype.is_floating]
    exact = [tf.cast(each.value(), tf.float64 if each.dtype == tf.float64 else tf.float32) for each in floats]
    for variable, total in zip(floats, collectives.all_reduce_packed(exact), strict=True):
        variable.assign(tf.cast(total / collectives.world_size, variable.dtype))
    others = [variable for variable in variables if not variable.dtype.is_floating]
    if others:
        values = collectives.broadcast([variable.numpy() for variable in others])
        for variable, value in zip(others, values, strict=True):
            variable.assign(value)


def _differing(model: Any) -> list[tf.Variable]:
    """Return the non-trainable variables of a model that differ between workers; every worker must call this."""
    strategy = replica_strategy(model.distribute_strategy)
    if strategy is None:
        return []
    found = [plain_variable(each) for each in model.non_trainable_variables]
    # tf_keras also lists lookup tables, which have no value.
    variables = [v for v in found if isinstance(v, tf.Variable) and is_numeric(v) and not is_partial_sum(v)]
    if not variables:
        return []
    own = json.dumps([checksum(variable.numpy()) for variable in variables]).encode()
    all_checksums = [json.loads(each) for each in strategy.collectives.gather_bytes(own)]
    return [
        variable
        for variable, of_ranks in zip(variables, zip(*all_checksums, strict=True), strict=True)
        if len(set(of_ranks)) > 1
    ]
