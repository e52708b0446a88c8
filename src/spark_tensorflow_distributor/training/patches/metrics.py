"""Patches for metrics: each worker updates its part of a metric's state, and reading the metric adds up the parts."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from ..keras_api import by_name, defining_class
from ..keras_step import combines_logs, counted
from ..replica import replica_strategy
from ..replica_step import current_step
from ..variable_sync import START, is_numeric, is_partial_sum, plain_variable

# Attribute whole: ids of the variables of metrics that hold sums over all workers now.
_state = threading.local()

# Set on a method that has been wrapped.
_MARK = "covers_all_workers"


def metrics(keras: ModuleType) -> None:
    """Make a metric's result cover all workers, and weight scalar values by the replica's batch fraction.

    Then a step that passes its scalar loss to a ``Mean`` counts once, however many replicas there are. Tensors with one
    value per row need no weights.
    """
    for base in (keras.metrics.Mean, keras.metrics.Sum):
        owner = defining_class(base, "update_state")
        owner.update_state = _weighting_scalars(owner.update_state)
    _wrap_at_first_use(keras.metrics.Metric)


def _weighting_scalars(original: Callable[..., Any]) -> Callable[..., Any]:
    def update_state(call: inspect.BoundArguments) -> Any:
        step = current_step()
        if step is not None and (values := tf.convert_to_tensor(call.arguments["values"])).shape.rank == 0:
            call.arguments["values"] = step.of_rows(values)
            # If every replica has the whole batch, only the first replica's update is kept (see counted).
            if call.arguments.get("sample_weight") is None and step.part.is_whole is not True:
                weight = step.batch_fraction()
                if step.part.is_whole is not False:
                    weight = tf.where(step.part.is_whole, tf.ones_like(weight), weight)
                call.arguments["sample_weight"] = weight
        return original(*call.args, **call.kwargs)

    return by_name(original, update_state)


def _wrap_at_first_use(metric_class: Any) -> None:
    """Wrap the methods of each class of metrics when an instance is created.

    When a class is defined, it may have no methods yet: cloudpickle creates a class first, and adds its methods later.
    """
    original = metric_class.__new__

    @functools.wraps(original)
    def new(cls: Any, *args: Any, **kwargs: Any) -> Any:
        for name, wrap in (("__init__", _wrap_init), ("reset_state", _wrap_reset), ("result", _wrap_result)):
            method = getattr(cls, name)
            if inspect.isfunction(method) and not hasattr(method, _MARK):
                setattr(cls, name, wrap(method))
                setattr(getattr(cls, name), _MARK, True)
        return original(cls) if original is object.__new__ else original(cls, *args, **kwargs)

    metric_class.__new__ = staticmethod(new)


def _wrap_init(original: Callable[..., None]) -> Callable[..., None]:
    """Make the variables that a metric creates hold parts of sums, however they are created.

    Keras declares only those of ``add_weight`` as sums. A variable of another kind would hold the sum over this
    worker's rows, and workers that decide by it would decide differently. One that does not begin at zero, such as a
    threshold, is not a sum.
    """

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        strategy = replica_strategy()
        if strategy is None:
            return original(self, *args, **kwargs)
        # A metric that is passed to compile() as a class is created in the step, where a variable has no value yet.
        with tf.init_scope():
            with strategy.variables.collected() as created:
                original(self, *args, **kwargs)
            own = {id(variable) for variable in _variables(self)}
            for variable in created:
                if id(variable) in own and not is_partial_sum(variable) and _is_zero(variable):
                    strategy.variables.make_partial_sum(variable)
            _note_starts(self, {})
        return None

    init.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]  # tf_keras does not unwrap functions
    return init


def _variables(metric: Any) -> list[tf.Variable]:
    """Return the variables that a metric lists or has as attributes, not those of layers in a metric."""
    found = []
    for value in vars(metric).values():
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        found += [plain for plain in map(plain_variable, values) if isinstance(plain, tf.Variable)]
    return found


def _is_zero(variable: tf.Variable) -> bool:
    return is_numeric(variable) and not np.any(variable.numpy())


def _wrap_reset(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def reset_state(self: Any, *args: Any, **kwargs: Any) -> None:
        if replica_strategy() is None or not tf.executing_eagerly():
            return original(self, *args, **kwargs)
        # A variable that this leaves unchanged, such as the number of rows seen so far, has not started again.
        before = {id(variable): variable.numpy() for variable in filter(is_partial_sum, _variables(self))}
        original(self, *args, **kwargs)
        _note_starts(self, before)
        return None

    return reset_state


def _note_starts(metric: Any, before: Mapping[int, np.ndarray]) -> None:
    """Note the values from which the parts of sums start, such as 1 in a smoothed mean: they count once.

    Args:
        metric: The metric.
        before: Values by the variable's id; a variable that still has its value is left out.
    """
    for variable in filter(is_partial_sum, _variables(metric)):
        value = variable.numpy()
        if id(variable) not in before or not np.array_equal(before[id(variable)], value):
            setattr(variable, START, value if np.any(value) else None)


def _wrap_result(original: Callable[..., Any]) -> Callable[..., Any]:

    @functools.wraps(original)
    def result(self: Any, *args: Any, **kwargs: Any) -> Any:
        with whole_metrics([self]) as is_whole:
            value = original(self, *args, **kwargs)
            # A result may be a variable, whose value is about to be restored to this worker's part.
            return tf.nest.map_structure(_value, value) if is_whole else value

    return result


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
    if strategy is None or not _is_read():
        yield False
        return
    listed = [v for metric in of for v in (*map(plain_variable, metric.variables), *_variables(metric))]
    # Variables that hold sums already: a metric's result may read other metrics, and fit's logs read all of them.
    before: frozenset[int] = getattr(_state, "whole", frozenset())
    variables = list({id(v): v for v in listed if is_partial_sum(v) and id(v) not in before}.values())
    step = current_step()
    own = [tf.identity(variable) for variable in variables]
    parts = own if step is None else [counted(step, variable) for variable in variables]
    for variable, total in zip(variables, strategy.collectives.all_reduce_packed(parts), strict=True):
        start = getattr(variable, START, None)
        variable.assign(total if start is None else total - start * (strategy.collectives.world_size - 1))
    _state.whole = before.union(map(id, variables))
    try:
        yield True
    finally:
        _state.whole = before
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
