"""Patches for Keras' loops over epochs and steps."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ...data.transformations import inputs_of, kind_of
from ..batch_parts import BatchPart
from ..keras_api import by_name
from ..keras_step import logs_are_read, weighted_mean
from ..part_data import PartDataset, PartIterator
from ..private_names import KERAS_TRAINER
from ..replica import ReplicaStrategy, replica_strategy
from ..replica_step import ReplicaStep, current_method
from ..step_function import StepFunction
from .layer_state import average_state
from .metrics import whole_metrics


def parts(keras: ModuleType) -> None:
    """Give each replica its part of each batch.

    tf.distribute divides batches by rewriting the dataset. The size of the global batch is then unknown, and some
    replicas may get no rows.
    """
    trainer = KERAS_TRAINER.load()
    loop, model = trainer.TFEpochIterator, trainer.TensorFlowTrainer
    loop.__init__, model._make_function = _dividing(loop.__init__), _on_parts(model._make_function)
    without_reduction(trainer)


def without_reduction(module: Any) -> None:
    """Keep Keras from reducing the outputs of a step, which already cover all replicas."""
    original = module._collective_all_reduce_multi_worker

    @functools.wraps(original)
    def collective_all_reduce_multi_worker(strategy: Any) -> bool:
        return not isinstance(strategy, ReplicaStrategy) and bool(original(strategy))

    module._collective_all_reduce_multi_worker = collective_all_reduce_multi_worker


class Divider:
    """Stands in for a strategy while Keras distributes a dataset."""

    def __init__(self, distribute: Callable[[Any], Any]) -> None:
        self._distribute = distribute

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        del options
        return self._distribute(dataset)


def _dividing(original: Callable[..., None]) -> Callable[..., None]:
    def init(call: inspect.BoundArguments) -> None:
        given = call.arguments.get("distribute_strategy")
        strategy = replica_strategy(given)
        if strategy is None:
            return original(*call.args, **call.kwargs)
        self = call.arguments["self"]

        def divide(dataset: Any) -> Any:
            length = self.steps_per_epoch, self.data_adapter.num_batches
            if reads_a_generator(self.data_adapter):
                return PartDataset(strategy, without_prefetch(dataset), *length, prefetched=0)
            return PartDataset(strategy, dataset, *length)

        call.arguments["distribute_strategy"] = Divider(divide)
        original(*call.args, **call.kwargs)
        self._distribute_strategy = given
        return None

    return by_name(original, init)


def reads_a_generator(adapter: Any) -> bool:
    """Return whether an adapter of either Keras reads a generator, which several calls of ``fit`` may share.

    Batches that are read in advance are lost to the next call, and their number depends on timing. Workers would then
    train on different batches, so they read nothing in advance.
    """
    return type(adapter).__name__ == "GeneratorDataAdapter"


def without_prefetch(dataset: Any) -> Any:
    """Return a dataset without the prefetch that Keras has added to it."""
    while kind_of(dataset) == "PrefetchDataset":
        (dataset,) = inputs_of(dataset)
    return dataset


def _on_parts(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def make_function(self: Any, step: Callable[[Any], Any]) -> Any:
        strategy = replica_strategy(self.distribute_strategy)
        if strategy is None:
            return original(self, step)
        return StepFunction(self, step, strategy, functools.partial(original, self, step))

    return make_function


def epoch_results(keras: ModuleType) -> None:
    """Make the logs of an epoch, and the state of layers after it, cover all workers.

    An unsynchronised BatchNormalization computes its moving statistics from its own worker's rows, so each worker would
    evaluate and save a different model.
    """
    model = KERAS_TRAINER.load().TensorFlowTrainer
    model._get_metrics_result_or_logs = epoch_logs(model._get_metrics_result_or_logs)


def epoch_logs(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the method that returns the logs of an epoch: the results of metrics, or the logs of the last step."""

    @functools.wraps(original)
    def metrics_result_or_logs(self: Any, logs: Any) -> Any:
        strategy = replica_strategy(self.distribute_strategy)
        if strategy is None:
            return original(self, logs)
        with whole_metrics(self.metrics):
            result = original(self, logs)
        if current_method() == "fit":
            average_state(self)
        if result is not logs or logs_are_read.get() or not logs:
            return result
        part = PartIterator.last_part or BatchPart(None, is_even=True)
        return weighted_mean(logs, ReplicaStep(part, strategy.collectives))

    return metrics_result_or_logs
