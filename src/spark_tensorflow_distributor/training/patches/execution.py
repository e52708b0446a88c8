"""Patches for how a step is executed."""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..private_names import KERAS_TRAINER
from ..replica import replica_strategy
from ..step_times import step_times


def jit_compile(keras: ModuleType) -> None:
    """Turn XLA off for training and evaluation on CPUs, with a message: collectives cannot be compiled there."""
    model = KERAS_TRAINER.load().TensorFlowTrainer
    make_function = model._make_function

    @functools.wraps(make_function)
    def without_xla(self: Any, *args: Any, **kwargs: Any) -> Any:
        strategy = replica_strategy(self.distribute_strategy)
        if not self.jit_compile or strategy is None or "GPU" in strategy.extended.worker_devices[0].upper():
            return make_function(self, *args, **kwargs)
        if strategy.collectives.rank == 0:
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


def timed_steps(keras: ModuleType) -> None:
    """Measure the steps of tf_keras, whose functions fetch their batches within the graph."""
    step_times.fetches_in_graph = True
    for kind in ("train", "test", "predict"):
        name = f"make_{kind}_function"
        setattr(keras.Model, name, _timing(getattr(keras.Model, name), f"{kind}_function"))


def _timing(original: Callable[..., Any], attribute: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def make_function(self: Any, *args: Any, **kwargs: Any) -> Any:
        function = original(self, *args, **kwargs)
        steps = self._steps_per_execution
        is_single = steps is None or int(steps.numpy()) == 1  # a graph of several steps hides where each one begins
        if replica_strategy(self.distribute_strategy) is None or not is_single or hasattr(function, "is_timed"):
            return function
        function = _timed(function)
        setattr(self, attribute, function)
        return function

    return make_function


def _timed(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    count = getattr(function, "experimental_get_tracing_count", lambda: 0)

    def step(iterator: Any) -> Any:
        traced = count()
        step_times.begin()
        try:
            outputs = function(iterator)
        except BaseException:
            step_times.cancel()
            raise
        # The time of a step that is traced is not typical.
        step_times.end() if count() == traced else step_times.cancel()
        return outputs

    step.is_timed = True  # type: ignore[attr-defined]
    return step
