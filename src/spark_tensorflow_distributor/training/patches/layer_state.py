"""State that is no gradient's affair."""

import functools
import json
import zlib
from typing import Any

import numpy as np

from ..collectives import Collectives
from .probe import spans_workers


def moving_statistics(tf: Any, keras: Any) -> bool:
    """Makes the state of layers the same on all workers at the end of each epoch, before it is evaluated or saved.

    A BatchNormalization that is not synchronised has the moving statistics of its own worker's rows, so that each
    worker evaluates and saves another model.
    """
    model = keras.src.backend.tensorflow.trainer.TensorFlowTrainer
    original = model._get_metrics_result_or_logs

    @functools.wraps(original)
    def get_metrics_result_or_logs(self: Any, logs: Any) -> Any:
        result = original(self, logs)
        average_state(tf, self)
        return result

    model._get_metrics_result_or_logs = get_metrics_result_or_logs
    return True


def average_state(tf: Any, model: Any) -> None:
    """Average over the workers what differs among them of a model's variables that are not trained.

    Every worker has to call; of integers, the chief's count.
    """
    strategy = model.distribute_strategy
    variables = model.non_trainable_variables
    if not variables or not spans_workers(tf, strategy):
        return
    exchange = Collectives.of_workers(strategy)
    values = [variable.numpy() for variable in variables]
    sums = json.dumps([zlib.crc32(value.tobytes()) for value in values]).encode()
    found = [json.loads(each) for each in exchange.gather(sums)]
    for index, (variable, value) in enumerate(zip(variables, values, strict=True)):
        if all(each[index] == found[0][index] for each in found):
            continue
        if value.dtype.kind == "f":
            variable.assign(exchange.mean(value))
        else:
            data = exchange.broadcast(value.tobytes())
            assert data is not None
            variable.assign(np.frombuffer(data, value.dtype).reshape(value.shape))
