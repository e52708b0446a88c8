"""Averages the state of layers that is not trained by gradients, and that each worker computes from its own rows."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from ..replica import replica_strategy
from ..variable_sync import checksum, is_numeric, is_partial_sum, plain_variable

# Variables, and the values that one worker has.
Values: TypeAlias = list[tuple[tf.Variable, np.ndarray]]


def average_state(model: Any) -> None:
    """Average the non-trainable variables of a model that differ between workers.

    Every worker must call this. Integers are not averaged; all workers get the chief's.
    """
    _average(_differing(model), model)


@contextlib.contextmanager
def averaged_state(model: Any) -> Iterator[Values]:
    """Average the state as :func:`average_state` does, within the context only; yield this worker's own values."""
    own = _differing(model)
    _average(own, model)
    try:
        yield own
    finally:
        for variable, value in own:
            variable.assign(value)


def _average(own: Values, model: Any) -> None:
    strategy = replica_strategy(model.distribute_strategy)
    if strategy is None:
        return
    floats = [(variable, value) for variable, value in own if variable.dtype.is_floating]
    others = [(variable, value) for variable, value in own if not variable.dtype.is_floating]
    for some, combine in ((floats, strategy.collectives.means), (others, strategy.collectives.broadcast)):
        if some:
            for (variable, _), value in zip(some, combine([value for _, value in some]), strict=True):
                variable.assign(value)


def _differing(model: Any) -> Values:
    """Return the non-trainable variables of a model that differ between workers, with this worker's values.

    Every worker must call this.
    """
    strategy = replica_strategy(model.distribute_strategy)
    if strategy is None:
        return []
    found = [plain_variable(each) for each in model.non_trainable_variables]
    # tf_keras also lists lookup tables, which have no value.
    variables = [v for v in found if isinstance(v, tf.Variable) and is_numeric(v) and not is_partial_sum(v)]
    if not variables:
        return []
    checksums = json.dumps([checksum(variable.numpy()) for variable in variables]).encode()
    all_checksums = [json.loads(each) for each in strategy.collectives.gather_bytes(checksums)]
    by_variable = zip(variables, zip(*all_checksums, strict=True), strict=True)
    return [(variable, variable.numpy()) for variable, of_ranks in by_variable if len(set(of_ranks)) > 1]
