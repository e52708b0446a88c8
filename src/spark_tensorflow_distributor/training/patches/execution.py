"""How a step is executed."""

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ..keras_api import defining_class
from .probe import spans_workers

_state = threading.local()


def without_merge_calls(tf: Any) -> None:
    """Lets a replica reduce and update variables by itself.

    By default TensorFlow leaves the replica's function for that ("merge call"), which it can do neither within a branch
    nor within a loop: so ``gradient_accumulation_steps``, a LossScaleOptimizer and ``ema_overwrite_frequency`` raise.
    TensorFlow has the direct way for functions compiled for GPUs, and tests it with all of its strategies.
    """
    from tensorflow.python.distribute import collective_all_reduce_strategy, values

    extended = collective_all_reduce_strategy.CollectiveAllReduceExtended
    original, aggregate = extended._use_merge_call, values.apply_aggregation_replica_context
    only_first = tf.VariableAggregation.ONLY_FIRST_REPLICA

    def is_alone(strategy: Any) -> bool:
        # Several replicas in a process would have to meet in eager mode, and to copy what the first one has.
        return isinstance(strategy, extended) and len(strategy.worker_devices) == 1

    @functools.wraps(original)
    def use_merge_call(self: Any) -> bool:
        return bool(original(self)) and not is_alone(self)

    @functools.wraps(aggregate)
    def apply_aggregation(value: Any, aggregation: Any, destinations: Any) -> Any:
        if aggregation == only_first and is_alone(tf.distribute.get_strategy().extended):
            return value
        return aggregate(value, aggregation, destinations)

    extended._use_merge_call = use_merge_call
    values.apply_aggregation_replica_context = apply_aggregation


def steps_per_execution(tf: Any, keras: Any) -> bool:
    """Runs the steps of an execution one after the other.

    Keras has them in a loop of TensorFlow, where collectives find no key. So there are as few calls of callbacks as
    asked for, but as many calls of TensorFlow as there are steps.
    """
    trainer = keras.src.backend.tensorflow.trainer
    model, loop = trainer.TensorFlowTrainer, trainer.TFEpochIterator
    if hasattr(model, "_make_function"):
        model._make_function = _made_in_turn(tf, model._make_function)
        name = "_enumerate_iterator"
    else:  # before Keras 3.8
        for kind in ("train", "test"):
            original = getattr(model, f"make_{kind}_function")
            setattr(model, original.__name__, _made_of_single_steps(tf, original, f"{kind}_function"))
        name = "enumerate_epoch"
    owner = defining_class(loop, name)
    setattr(owner, name, _counting(getattr(owner, name)))
    return True


def _made_in_turn(tf: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def make_function(self: Any, *args: Any, **kwargs: Any) -> Any:
        function = original(self, *args, **kwargs)
        return _in_turn(tf, self, function) if spans_workers(tf, self.distribute_strategy) else function

    return make_function


def _made_of_single_steps(tf: Any, original: Callable[..., Any], attribute: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def make_function(self: Any, force: bool = False) -> Any:
        function, steps = getattr(self, attribute), self.steps_per_execution
        if (function is not None and not force) or steps == 1 or not spans_workers(tf, self.distribute_strategy):
            return original(self, force)
        self.steps_per_execution = 1
        try:
            original(self, force)
        finally:
            self.steps_per_execution = steps
        setattr(self, attribute, _in_turn(tf, self, getattr(self, attribute)))
        return getattr(self, attribute)

    return make_function


def _in_turn(tf: Any, model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """An execution: calls of what makes one step, as many as are left in the epoch."""

    def execution(iterator: Any) -> Any:
        steps = model.steps_per_execution
        if steps == 1 or not isinstance(iterator, tf.data.Iterator | tf.distribute.DistributedIterator):
            return function(iterator)
        outputs = None
        model.steps_per_execution = 1
        try:
            for _ in range(min(steps, getattr(_state, "left", None) or steps)):
                outputs = function(iterator)
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
        for each in original(self):
            _state.left = self._num_batches - each[0] if self._num_batches and not self.steps_per_epoch else None
            yield each

    return enumerate_steps


def jit_compile(tf: Any, keras: Any) -> bool:
    """Leaves XLA out of training and evaluation on CPUs, and says so: collectives cannot be compiled there."""
    model = keras.src.backend.tensorflow.trainer.TensorFlowTrainer
    if not hasattr(model, "_make_function"):
        return False  # before Keras 3.8 the step is compiled; a part's step is run as it was written
    make_function = model._make_function

    @functools.wraps(make_function)
    def without_xla(self: Any, *args: Any, **kwargs: Any) -> Any:
        strategy = self.distribute_strategy
        if (
            not self.jit_compile
            or not spans_workers(tf, strategy)
            or "GPU" in strategy.extended.worker_devices[0].upper()
        ):
            return make_function(self, *args, **kwargs)
        if strategy.cluster_resolver.task_id == 0:
            print(
                "jit_compile=True is left out for fit and evaluate: TensorFlow cannot compile the collectives of "
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
