"""Patches for variables that no gradient updates."""

import functools
import json
import zlib
from types import ModuleType
from typing import Any

import numpy as np

from ..collectives import Collectives
from ..private_names import KERAS_TRAINER
from .probe import spans_workers


def moving_statistics(keras: ModuleType) -> bool:
    """Make the state of layers the same on all workers at the end of each epoch, before it is evaluated or saved.

    A BatchNormalization that is not synchronised has the moving statistics of its own worker's rows, so each worker
    would evaluate and save a different model.
    """
    model = KERAS_TRAINER.load().TensorFlowTrainer
    original = model._get_metrics_result_or_logs

    @functools.wraps(original)
    def get_metrics_result_or_logs(self: Any, logs: Any) -> Any:
        result = original(self, logs)
        average_state(self)
        return result

    model._get_metrics_result_or_logs = get_metrics_result_or_logs
    return True


def average_state(model: Any) -> None:
    """Average those of a model's non-trainable variables that differ among the workers.

    Every worker has to call it. Integers are not averaged: all workers get the chief's.
    """
    strategy = model.distribute_strategy
    variables = model.non_trainable_variables
    if not variables or not spans_workers(strategy):
        return
    collectives = Collectives.of_workers(strategy)
    values = [variable.numpy() for variable in variables]
    checksums = json.dumps([zlib.crc32(value.tobytes()) for value in values]).encode()
    all_checksums = [json.loads(each) for each in collectives.gather_bytes(checksums)]
    for index, (variable, value) in enumerate(zip(variables, values, strict=True)):
        if all(each[index] == all_checksums[0][index] for each in all_checksums):
            continue
        if value.dtype.kind == "f":
            variable.assign(collectives.mean(value))
        else:
            data = collectives.broadcast_bytes(value.tobytes())
            assert data is not None
            variable.assign(np.frombuffer(data, value.dtype).reshape(value.shape))
