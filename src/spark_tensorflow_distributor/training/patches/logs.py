"""Patches for the logs that a step returns."""

from __future__ import annotations

import contextvars
import functools
import inspect
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import tensorflow as tf

from ..collectives import Collectives
from ..keras_api import by_name, given_callbacks
from ..private_names import KERAS_TRAINER
from .probe import probe_strategy, spans_workers

# Whether a callback on any worker reads the logs of single steps; None outside of ``fit`` and its kind.
_logs_are_read: contextvars.ContextVar[bool | None] = contextvars.ContextVar("logs_are_read", default=None)


def reduce_per_replica(keras: ModuleType) -> bool:
    """Average logs over the workers only. Keras also averages along the first axis, which only vectors have."""
    trainer, strategy = KERAS_TRAINER.load(), probe_strategy()
    with tf.Graph().as_default():  # a tensor outside of a graph would initialise the eager context
        trainer.reduce_per_replica(tf.compat.v1.placeholder(tf.float32, ()), strategy, "mean")
    if not strategy.axes:
        raise RuntimeError("it does not use Strategy.reduce")
    if strategy.axes == [None]:
        return False
    original = trainer.reduce_per_replica

    @functools.wraps(original)
    def reduce_per_replica(values: Any, strategy: tf.distribute.Strategy, reduction: str) -> Any:
        if reduction not in ("auto", "mean", "sum") or not spans_workers(strategy):
            return original(values, strategy, reduction)
        if _logs_are_read.get() is False and reduction != "sum":
            return tf.nest.map_structure(lambda value: _local_mean(strategy, value), values)
        return _reduce_over_workers(values, strategy, "SUM" if reduction == "sum" else "MEAN")

    trainer.reduce_per_replica = reduce_per_replica  # type: ignore[attr-defined]
    return True


def _reduce_over_workers(values: Any, strategy: tf.distribute.Strategy, operation: str) -> Any:
    """Reduce the tensors of a structure. Scalars of a type go together, as each collective costs a round trip."""
    leaves = tf.nest.flatten(values)
    scalars: dict[tf.DType, list[int]] = {}
    for index, leaf in enumerate(leaves):
        if isinstance(leaf, tf.Tensor) and leaf.shape.rank == 0:
            scalars.setdefault(leaf.dtype, []).append(index)
        elif isinstance(leaf, (tf.Tensor, tf.distribute.DistributedValues)):
            leaves[index] = strategy.reduce(operation, leaf, axis=None)
    for indices in scalars.values():
        reduced = strategy.reduce(operation, tf.stack([leaves[index] for index in indices]), axis=None)
        for index, value in zip(indices, tf.unstack(reduced, num=len(indices)), strict=True):
            leaves[index] = value
    return tf.nest.pack_sequence_as(values, leaves)


def unread_logs(keras: ModuleType) -> bool:
    """Do not average the logs of single steps over the workers if nobody reads them; average those of an epoch's end.

    Keras averages the logs of each step: a collective, which takes as long as a third of a small step.
    """
    model = KERAS_TRAINER.load().TensorFlowTrainer
    for name in ("fit", "evaluate", "train_on_batch", "test_on_batch"):
        setattr(model, name, _noting_readers(getattr(model, name), keras))
    original = model._get_metrics_result_or_logs

    @functools.wraps(original)
    def get_metrics_result_or_logs(self: Any, logs: Any) -> Any:
        result = original(self, logs)
        if result is not logs or _logs_are_read.get() is not False or not logs:
            return result  # from metrics, which sum over the workers themselves
        return _reduce_over_workers(logs, self.distribute_strategy, "MEAN")

    model._get_metrics_result_or_logs = get_metrics_result_or_logs
    return True


# For which case a model's functions were made.
_made_for: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def _noting_readers(original: Callable[..., Any], keras: ModuleType) -> Callable[..., Any]:
    def method(call: inspect.BoundArguments) -> Any:
        model = call.arguments["self"]
        strategy = getattr(model, "_distribute_strategy", None)
        if _logs_are_read.get() is not None or not spans_workers(strategy):
            return original(*call.args, **call.kwargs)
        are_read = original.__name__.endswith("on_batch") or _are_read_anywhere(keras, strategy, call.arguments)
        if _made_for.get(model, are_read) != are_read:
            model.train_function = model.test_function = None
        _made_for[model] = are_read
        token = _logs_are_read.set(are_read)
        try:
            return original(*call.args, **call.kwargs)
        finally:
            _logs_are_read.reset(token)

    return by_name(original, method)


def _are_read_anywhere(keras: ModuleType, strategy: tf.distribute.Strategy, arguments: dict[str, Any]) -> bool:
    are_read = arguments.get("verbose", "auto") in (1, "auto")
    are_read = are_read or any(_reads_steps(keras, each) for each in given_callbacks(arguments.get("callbacks")))
    collectives = Collectives.of_workers(strategy)
    return any(each == b"1" for each in collectives.gather_bytes(b"1" if are_read else b"0"))


def _local_mean(strategy: tf.distribute.Strategy, value: Any) -> Any:
    if not isinstance(value, tf.Tensor | tf.distribute.DistributedValues):
        return value
    return tf.reduce_mean(tf.stack(strategy.experimental_local_results(value)), axis=0)


def _reads_steps(keras: ModuleType, callback: Any) -> bool:
    """Return whether a callback is called after steps and may read their logs."""
    known = keras.callbacks
    if getattr(callback, "ignores_step_logs", False) or isinstance(callback, known.BackupAndRestore):
        return False
    if isinstance(callback, known.ModelCheckpoint) and callback.save_freq == "epoch":
        return False
    if isinstance(callback, known.TensorBoard) and callback.update_freq == "epoch":
        return False
    names = ("on_batch_end", "on_train_batch_end", "on_test_batch_end")
    overridden = [getattr(type(callback), name) is not getattr(known.Callback, name) for name in names]
    return any(overridden) or any(name in vars(callback) for name in names)
