"""Patches for metrics: each worker updates its part of a metric's state, and reading the metric adds up the parts."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import tensorflow as tf

from ..keras_api import by_name, defining_class
from ..keras_step import combines_logs, counted
from ..replica import replica_strategy
from ..replica_step import current_step
from ..variable_sync import is_partial_sum, plain_variable

_state = threading.local()


def metrics(keras: ModuleType) -> None:
    """Make a metric's result cover all workers, and weight scalar values by the replica's share.

    Then a step that passes its scalar loss to a ``Mean`` counts once, however many replicas there are. Tensors with one
    value per row need no weights.
    """
    for base in (keras.metrics.Mean, keras.metrics.Sum):
        owner = defining_class(base, "update_state")
        owner.update_state = _weighting_scalars(owner.update_state)
    _combine_results(keras.metrics.Metric)


def _weighting_scalars(original: Callable[..., Any]) -> Callable[..., Any]:
    def update_state(call: inspect.BoundArguments) -> Any:
        step = current_step()
        if step is not None and call.arguments.get("sample_weight") is None:
            values = tf.convert_to_tensor(call.arguments["values"])
            # If every replica has the whole batch, only the first replica's update is kept (see counted).
            if values.shape.rank == 0 and step.part.is_whole is not True:
                weight = step.share()
                if step.part.is_whole is not False:
                    weight = tf.where(step.part.is_whole, tf.ones_like(weight), weight)
                call.arguments["sample_weight"] = weight
        return original(*call.args, **call.kwargs)

    return by_name(original, update_state)


def _combine_results(metric_class: Any) -> None:
    """Wrap ``result`` in the class and all of its subclasses, present and future."""
    waiting = [metric_class]
    while waiting:
        each = waiting.pop()
        _wrap_result(each)
        waiting += each.__subclasses__()
    init_subclass = metric_class.__init_subclass__

    def wrap_new(cls: Any, /, **kwargs: Any) -> None:
        init_subclass(**kwargs)
        _wrap_result(cls)

    metric_class.__init_subclass__ = classmethod(wrap_new)


def _wrap_result(metric_class: Any) -> None:
    original = vars(metric_class).get("result")
    if not inspect.isfunction(original) or hasattr(original, "covers_all_workers"):
        return

    @functools.wraps(original)
    def result(self: Any, *args: Any, **kwargs: Any) -> Any:
        with whole_metrics([self]) as is_whole:
            value = original(self, *args, **kwargs)
            # A result may be a variable, whose value is about to be restored to this worker's part.
            return tf.nest.map_structure(_value, value) if is_whole else value

    result.covers_all_workers = True  # type: ignore[attr-defined]
    metric_class.result = result


@contextlib.contextmanager
def whole_metrics(of: Iterable[Any]) -> Iterator[bool]:
    """Make the variables of metrics hold the sums over all workers within the context.

    In a step, this is done only if the step's logs are read. Outside of a step, every rank must enter the context.

    Args:
        of: The metrics.

    Yields:
        Whether the variables hold the sums.
    """
    strategy = replica_strategy()
    is_whole = getattr(_state, "is_whole", False)
    if strategy is None or is_whole or not _is_read():
        yield is_whole
        return
    variables = list(
        {id(v): v for metric in of for v in map(plain_variable, metric.variables) if is_partial_sum(v)}.values()
    )
    step = current_step()
    own = [tf.identity(variable) for variable in variables]
    parts = own if step is None else [counted(step, variable) for variable in variables]
    for variable, total in zip(variables, strategy.collectives.all_reduce_packed(parts), strict=True):
        variable.assign(total)
    _state.is_whole = True
    try:
        yield True
    finally:
        _state.is_whole = False
        for variable, value in zip(variables, own, strict=True):
            variable.assign(value)


def _is_read() -> bool:
    if current_step() is not None:
        return combines_logs()
    # Within Strategy.run, a metric covers the rows that this worker has seen; outside of it, the rows of all workers.
    return tf.distribute.get_replica_context() is None


def _value(value: Any) -> Any:
    plain = plain_variable(value)
    return tf.identity(plain) if isinstance(plain, tf.Variable) else value
