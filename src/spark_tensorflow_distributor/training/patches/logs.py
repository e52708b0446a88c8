"""The values that a step returns."""

import contextvars
import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

from ..collectives import Collectives
from ..keras_api import by_name, given_callbacks
from .probe import probe_strategy, spans_workers

# Whether a callback of any worker reads what single steps return; None outside of ``fit`` and the like.
_is_read: contextvars.ContextVar[bool | None] = contextvars.ContextVar("is_read", default=None)


def reduce_per_replica(tf: Any, keras: Any) -> bool:
    """Averages logs over the workers as they are. Keras goes along their first axis, too, which only vectors have."""
    trainer, strategy = keras.src.backend.tensorflow.trainer, probe_strategy(tf)
    with tf.Graph().as_default():  # a tensor outside of a graph would start the eager context
        trainer.reduce_per_replica(tf.compat.v1.placeholder(tf.float32, ()), strategy, "mean")
    if not strategy.axes:
        raise RuntimeError("it does not use Strategy.reduce")
    if strategy.axes == [None]:
        return False
    original = trainer.reduce_per_replica

    @functools.wraps(original)
    def reduce_per_replica(values: Any, strategy: Any, reduction: str) -> Any:
        if reduction not in ("auto", "mean", "sum") or not spans_workers(tf, strategy):
            return original(values, strategy, reduction)
        if _is_read.get() is False and reduction != "sum":
            return tf.nest.map_structure(lambda value: _own_mean(tf, strategy, value), values)
        return _reduce_over_workers(tf, values, strategy, "SUM" if reduction == "sum" else "MEAN")

    trainer.reduce_per_replica = reduce_per_replica
    return True


def _reduce_over_workers(tf: Any, values: Any, strategy: Any, operation: str) -> Any:
    """Reduces the tensors of a structure; scalars of a type go together, as each collective is a round trip."""
    leaves = tf.nest.flatten(values)
    scalars: dict[Any, list[int]] = {}
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


def unread_logs(tf: Any, keras: Any) -> bool:
    """Leaves the logs of a step to the worker where nobody reads them, and averages those of an epoch's end.

    Keras averages them over the workers in each step: a collective, which takes as long as a third of a small step.
    """
    model = keras.src.backend.tensorflow.trainer.TensorFlowTrainer
    made: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()

    def reading(original: Callable[..., Any]) -> Callable[..., Any]:
        def method(call: inspect.BoundArguments) -> Any:
            self = call.arguments["self"]
            strategy = getattr(self, "_distribute_strategy", None)
            if _is_read.get() is not None or not spans_workers(tf, strategy):
                return original(*call.args, **call.kwargs)
            is_read = original.__name__.endswith("on_batch") or _is_read_anywhere(keras, strategy, call.arguments)
            if made.get(self, is_read) != is_read:
                self.train_function = self.test_function = None  # they were made for the other case
            made[self] = is_read
            token = _is_read.set(is_read)
            try:
                return original(*call.args, **call.kwargs)
            finally:
                _is_read.reset(token)

        return by_name(original, method)

    for name in ("fit", "evaluate", "train_on_batch", "test_on_batch"):
        setattr(model, name, reading(getattr(model, name)))
    at_the_end = model._get_metrics_result_or_logs

    @functools.wraps(at_the_end)
    def get_metrics_result_or_logs(self: Any, logs: Any) -> Any:
        result = at_the_end(self, logs)
        if result is not logs or _is_read.get() is not False or not logs:
            return result  # from metrics, which sum over the workers themselves
        return _reduce_over_workers(tf, logs, self.distribute_strategy, "MEAN")

    model._get_metrics_result_or_logs = get_metrics_result_or_logs
    return True


def _is_read_anywhere(keras: Any, strategy: Any, arguments: dict[str, Any]) -> bool:
    is_read = arguments.get("verbose", "auto") in (1, "auto")
    is_read = is_read or any(_reads_steps(keras, each) for each in given_callbacks(arguments.get("callbacks")))
    exchange = Collectives.of_workers(strategy)
    return any(each == b"1" for each in exchange.gather(b"1" if is_read else b"0"))


def _own_mean(tf: Any, strategy: Any, value: Any) -> Any:
    if not isinstance(value, tf.Tensor | tf.distribute.DistributedValues):
        return value
    return tf.reduce_mean(tf.stack(strategy.experimental_local_results(value)), axis=0)


def _reads_steps(keras: Any, callback: Any) -> bool:
    """Whether a callback is called after steps, and does with their logs what nobody knows."""
    known = keras.callbacks
    if getattr(callback, "ignores_step_logs", False) or isinstance(callback, known.BackupAndRestore):
        return False
    if isinstance(callback, known.ModelCheckpoint) and callback.save_freq == "epoch":
        return False
    if isinstance(callback, known.TensorBoard) and callback.update_freq == "epoch":
        return False
    names = ("on_batch_end", "on_train_batch_end", "on_test_batch_end")
    own = [getattr(type(callback), name) is not getattr(known.Callback, name) for name in names]
    return any(own) or any(name in vars(callback) for name in names)
