"""Patches for how a step is executed."""

import functools
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import tensorflow as tf

from ..keras_api import defining_class
from ..private_names import COLLECTIVE_STRATEGY, DISTRIBUTED_VALUES, KERAS_TRAINER
from .probe import spans_workers

_state = threading.local()


def without_merge_calls() -> None:
    """Let a replica reduce and update variables by itself.

    By default, TensorFlow leaves the replica's function for that ("merge call"), which is impossible within a branch or
    a loop. As a result, ``gradient_accumulation_steps``, a LossScaleOptimizer and ``ema_overwrite_frequency`` raise.
    TensorFlow has the direct way for functions compiled for GPUs, and tests it with all of its strategies.
    """
    extended, values = COLLECTIVE_STRATEGY.load().CollectiveAllReduceExtended, DISTRIBUTED_VALUES.load()
    original, aggregate = extended._use_merge_call, values.apply_aggregation_replica_context
    only_first = tf.VariableAggregation.ONLY_FIRST_REPLICA

    def has_one_replica(strategy: object) -> bool:
        # Several replicas in a process would have to meet in eager mode, and to copy the first one's value.
        return isinstance(strategy, extended) and len(strategy.worker_devices) == 1

    @functools.wraps(original)
    def use_merge_call(self: Any) -> bool:
        return bool(original(self)) and not has_one_replica(self)

    @functools.wraps(aggregate)
    def apply_aggregation(value: Any, aggregation: Any, destinations: Any) -> Any:
        if aggregation == only_first and has_one_replica(tf.distribute.get_strategy().extended):
            return value
        return aggregate(value, aggregation, destinations)

    extended._use_merge_call = use_merge_call
    values.apply_aggregation_replica_context = apply_aggregation  # type: ignore[attr-defined]


def steps_per_execution(keras: ModuleType) -> bool:
    """Run the steps of an execution one after the other.

    Keras runs them in a TensorFlow loop, where collectives find no key. So there are as few calls of callbacks as asked
    for, but as many calls of TensorFlow as there are steps.
    """
    trainer = KERAS_TRAINER.load()
    model = trainer.TensorFlowTrainer
    model._make_function = _running_single_steps(model._make_function)
    owner = defining_class(trainer.TFEpochIterator, "_enumerate_iterator")
    owner._enumerate_iterator = _counting(owner._enumerate_iterator)
    return True


def _running_single_steps(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def make_function(self: Any, *args: Any, **kwargs: Any) -> Any:
        function = original(self, *args, **kwargs)
        return _execution(self, function) if spans_workers(self.distribute_strategy) else function

    return make_function


def _execution(model: Any, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return an execution that calls ``step`` as often as there are steps left in the epoch."""

    def execution(iterator: Any) -> Any:
        steps = model.steps_per_execution
        if steps == 1 or not isinstance(iterator, tf.data.Iterator | tf.distribute.DistributedIterator):
            return step(iterator)
        outputs = None
        model.steps_per_execution = 1
        try:
            for _ in range(min(steps, getattr(_state, "steps_left", None) or steps)):
                outputs = step(iterator)
        except (StopIteration, tf.errors.OutOfRangeError):
            if outputs is None:
                raise
        finally:
            model.steps_per_execution = steps
        return outputs

    return execution


def _counting(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def enumerate_steps(self: Any) -> Iterator[Any]:
        for step in original(self):
            is_known = self._num_batches and not self.steps_per_epoch
            _state.steps_left = self._num_batches - step[0] if is_known else None
            yield step

    return enumerate_steps


def jit_compile(keras: ModuleType) -> bool:
    """Turn XLA off for training and evaluation on CPUs, with a message: collectives cannot be compiled there."""
    model = KERAS_TRAINER.load().TensorFlowTrainer
    make_function = model._make_function

    @functools.wraps(make_function)
    def without_xla(self: Any, *args: Any, **kwargs: Any) -> Any:
        strategy = self.distribute_strategy
        if not self.jit_compile or not spans_workers(strategy) or "GPU" in strategy.extended.worker_devices[0].upper():
            return make_function(self, *args, **kwargs)
        if strategy.cluster_resolver.task_id == 0:
            print(
                "jit_compile=True is ignored for fit and evaluate: TensorFlow cannot compile the collectives of "
                "several workers on CPUs. The numbers are the same.",
                flush=True,
            )
        self.jit_compile = False
        try:
            return make_function(self, *args, **kwargs)
        finally:
            self.jit_compile = True

    model._make_function = without_xla
    return True
