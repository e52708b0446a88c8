"""Patches for how much a worker's part of a batch contributes to the loss."""

from __future__ import annotations

import functools
import inspect
import operator
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import tensorflow as tf

from ..keras_api import by_name, defining_class
from ..private_names import KERAS_COMPILED, KERAS_LOSS
from .batch_parts import current_part, rows_in_part

# Whether the losses of single outputs are being computed.
_state = threading.local()


def weight_losses(keras: ModuleType) -> bool:
    """Weight a worker's loss by the rows, words or weights that it has of the global batch.

    Keras divides each worker's mean by the number of workers. If the parts are not equal (the remainder of a dataset),
    or if the mean covers only what a mask or the weights leave, the sum is not the mean over the global batch.
    """
    module: Any = KERAS_LOSS.load()
    scale, unscale = module.scale_loss_for_distribution, module.unscale_loss_for_distribution
    module.scale_loss_for_distribution = scaling(scale, operator.mul)
    module.unscale_loss_for_distribution = scaling(unscale, tf.math.divide_no_nan)
    module.apply_mask = _masking(module.apply_mask)
    module.reduce_values = _dividing_by_weights(module.reduce_values)
    compiled = KERAS_COMPILED.load().CompileLoss
    compiled.call = _marking_outputs(compiled.call)
    mean = defining_class(keras.metrics.Mean, "update_state")
    mean.update_state = _weighting_outputs(mean.update_state)
    return True


def batch_fraction() -> tf.Tensor | None:
    """Return this replica's fraction of the rows of the global batch, from 0 to 1; None if it is unknown."""
    part, replica = current_part(), tf.distribute.get_replica_context()
    if part is None or replica is None or replica.num_replicas_in_sync == 1:
        return None
    return tf.cast(rows_in_part(part), tf.float32) / tf.cast(part.global_rows, tf.float32)


def scaling(original: Callable[..., Any], scale: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Wrap a function that scales a loss by the number of replicas: scale it by the batch fraction if it is known."""

    @functools.wraps(original)
    def scale_loss(value: Any) -> Any:
        fraction = batch_fraction()
        if fraction is None:
            return original(value)
        value = tf.convert_to_tensor(value)
        return scale(value, tf.cast(fraction, value.dtype))

    return scale_loss


def sum_over_replicas(value: tf.Tensor) -> tf.Tensor:
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def _masking(original: Callable[..., Any]) -> Callable[..., Any]:
    """Take both numbers in Keras' weight for unmasked values, total / unmasked, from the global batch."""

    def apply_mask(call: inspect.BoundArguments) -> Any:
        arguments = call.arguments
        mask, is_mean = arguments.get("mask"), arguments.get("reduction") in ("mean", "sum_over_batch_size")
        if mask is None or not is_mean or batch_fraction() is None:
            return original(*call.args, **call.kwargs)
        dtype = arguments["dtype"]
        counts = tf.stack([tf.cast(tf.size(mask), dtype), tf.reduce_sum(tf.cast(mask, dtype))])
        total, unmasked = tf.unstack(sum_over_replicas(counts))
        # Any other reduction leaves the mask unchanged.
        arguments["mask"] = tf.cast(mask, dtype) * tf.math.divide_no_nan(total, unmasked)
        arguments["reduction"] = "sum"
        return original(*call.args, **call.kwargs)

    return by_name(original, apply_mask)


def _dividing_by_weights(original: Callable[..., Any]) -> Callable[..., Any]:
    def reduce_values(call: inspect.BoundArguments) -> Any:
        arguments = call.arguments
        weights = arguments.get("sample_weight")
        if arguments.get("reduction") != "mean_with_sample_weight" or weights is None or batch_fraction() is None:
            return original(*call.args, **call.kwargs)
        values = arguments["values"]
        return tf.math.divide_no_nan(
            tf.reduce_sum(values), sum_over_replicas(tf.cast(tf.reduce_sum(weights), values.dtype))
        )

    return by_name(original, reduce_values)


def _marking_outputs(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        _state.in_outputs = True
        try:
            return original(*args, **kwargs)
        finally:
            _state.in_outputs = False

    return call


def _weighting_outputs(original: Callable[..., Any]) -> Callable[..., Any]:
    """Weight the logged loss of each output: a model of several outputs counts every part once, whatever its rows."""

    def update_state(call: inspect.BoundArguments) -> Any:
        if getattr(_state, "in_outputs", False) and call.arguments.get("sample_weight") is None:
            fraction = batch_fraction()
            if fraction is not None:
                call.arguments["sample_weight"] = fraction
        return original(*call.args, **call.kwargs)

    return by_name(original, update_state)
