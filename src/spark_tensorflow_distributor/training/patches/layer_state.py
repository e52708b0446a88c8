"""Averages the state of layers that is not trained by gradients, and that each worker computes from its own rows."""

import json
import zlib
from typing import Any

import tensorflow as tf

from ..replica import replica_strategy
from ..variable_sync import is_numeric, is_partial_sum, plain_variable


def average_state(model: Any) -> None:
    """Average the non-trainable variables of a model that differ between workers.

    Every worker must call this. Integers are not averaged; all workers get the chief's.
    """
    strategy = replica_strategy(model.distribute_strategy)
    found = [plain_variable(each) for each in model.non_trainable_variables]
    # tf_keras also lists lookup tables, which have no value.
    variables = [v for v in found if isinstance(v, tf.Variable) and is_numeric(v) and not is_partial_sum(v)]
    if not variables or strategy is None:
        return
    collectives = strategy.collectives
    values = [variable.numpy() for variable in variables]
    checksums = json.dumps([zlib.crc32(value.tobytes()) for value in values]).encode()
    all_checksums = [json.loads(each) for each in collectives.gather_bytes(checksums)]
    for index, (variable, value) in enumerate(zip(variables, values, strict=True)):
        if all(each[index] == all_checksums[0][index] for each in all_checksums):
            continue
        if variable.dtype.is_floating:
            variable.assign(collectives.mean(value))
        else:
            variable.assign(collectives.broadcast([value])[0])
