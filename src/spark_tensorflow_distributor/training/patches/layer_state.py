"""Averages the state of layers that is not trained by gradients, and that each worker computes from its own rows."""

import contextlib
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from ..replica import replica_strategy
from ..variable_sync import is_numeric, is_partial_sum, plain_variable


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
    for variable in variables:
        if variable.dtype.is_floating:
            variable.assign(strategy.collectives.mean(variable.numpy()))
        else:
            variable.assign(strategy.collectives.broadcast([variable.numpy()])[0])


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
    checksums = json.dumps([zlib.crc32(variable.numpy().tobytes()) for variable in variables]).encode()
    all_checksums = [json.loads(each) for each in strategy.collectives.gather_bytes(checksums)]
    return [
        variable
        for variable, of_ranks in zip(variables, zip(*all_checksums, strict=True), strict=True)
        if len(set(of_ranks)) > 1
    ]
