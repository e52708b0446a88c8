"""Patches for losses that are not means over the rows, and that a replica therefore cannot compute alone."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import tensorflow as tf

from ..keras_api import by_name
from ..private_names import KERAS_LOSS, KERAS_TRAINER
from ..replica import replica_strategy
from ..replica_step import batch_fraction, current_step


def average_loss() -> None:
    """Correct ``tf.nn.compute_average_loss(..., global_batch_size=...)`` in Keras' steps.

    It divides the sum over the replica's rows by the number of rows on all replicas, so its result is not a mean over
    rows.
    """
    original = tf.nn.compute_average_loss

    def compute_average_loss(call: inspect.BoundArguments) -> Any:
        loss = original(*call.args, **call.kwargs)
        fraction = None if call.arguments.get("global_batch_size") is None else batch_fraction(loss)
        return loss if fraction is None else of_replica(loss, fraction)

    tf.nn.compute_average_loss = by_name(original, compute_average_loss)


def sums(keras: ModuleType) -> None:
    """Make sums over the rows, masked means and weighted means cover the whole batch.

    Losses are averaged over the replicas, weighted by rows. So a sum is divided by the replica's batch fraction. If the
    divisor of a mean is not the number of rows, the divisor of the whole batch is used.
    """
    module: Any = KERAS_LOSS.load()
    module.reduce_values = _reducing(module.reduce_values)
    module.apply_mask = _masking(module.apply_mask)
    for name in ("scale_loss_for_distribution", "unscale_loss_for_distribution"):
        setattr(module, name, scaling_in_user_steps(getattr(module, name)))
    trainer = KERAS_TRAINER.load().TensorFlowTrainer
    trainer._aggregate_additional_loss = _aggregating(trainer._aggregate_additional_loss)


def scaling_in_user_steps(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wrap a function that scales a loss by the number of replicas, so that it scales only within ``Strategy.run``."""

    @functools.wraps(original)
    def scale(value: Any) -> Any:
        if replica_strategy() is not None and tf.distribute.get_replica_context() is None:
            return value
        return original(value)

    return scale


def whole_sum(value: tf.Tensor) -> tf.Tensor:
    """Return the sum over all replicas; gradients do not flow through it.

    If every replica has the whole batch, a replica's own value is already the sum.
    """
    step = current_step()
    if step is None or step.part.is_whole is True:
        return value
    part = tf.stop_gradient(tf.zeros_like(value) if step.part.is_idle else value)
    total = step.collectives.all_reduce(part)
    return total if step.part.is_whole is False else tf.where(step.part.is_whole, value, total)


def mask_weights(mask: Any, dtype: Any) -> tf.Tensor:
    """Return a mask's weights, with which the mean over the replicas is the mean over all unmasked values.

    If the replicas' rows have the same shape, a weight is all values / unmasked values. Otherwise, for example if each
    replica pads to its own longest row, it cancels the number of values by which the replica divides its sum.
    """
    size = tf.cast(tf.size(mask), dtype)
    fraction = batch_fraction(size)
    total = size if fraction is None else of_replica(size, fraction)
    unmasked = whole_sum(tf.reduce_sum(tf.cast(mask, dtype)))
    return tf.cast(mask, dtype) * tf.math.divide_no_nan(total, unmasked)


def of_replica(total: tf.Tensor, fraction: tf.Tensor) -> tf.Tensor:
    """Scale a replica's sum so that the replicas' mean, weighted by their batch fractions, is the sum over all rows."""
    step = current_step()
    if step is None or step.part.is_idle:  # its batch fraction is 0
        return total
    divided = tf.math.divide_no_nan(total, fraction)
    if step.part.is_whole is False:
        return divided
    return total if step.part.is_whole is True else tf.where(step.part.is_whole, total, divided)


def _reducing(original: Callable[..., Any]) -> Callable[..., Any]:
    def reduce_values(call: inspect.BoundArguments) -> Any:
        arguments = call.arguments
        values, weights, reduction = arguments["values"], arguments.get("sample_weight"), arguments.get("reduction")
        loss = original(*call.args, **call.kwargs)
        fraction = batch_fraction(loss)
        if fraction is None or not len(values.shape):
            return loss
        if reduction == "sum":
            return of_replica(loss, fraction)
        if reduction == "mean_with_sample_weight" and weights is not None:
            total = whole_sum(tf.cast(tf.reduce_sum(weights), loss.dtype))
            return tf.math.divide_no_nan(of_replica(tf.reduce_sum(values), fraction), total)
        return loss

    return by_name(original, reduce_values)


def _masking(original: Callable[..., Any]) -> Callable[..., Any]:
    """Weight unmasked values by the ratio of all values to unmasked values in the whole batch."""

    def apply_mask(call: inspect.BoundArguments) -> Any:
        arguments = call.arguments
        mask, is_mean = arguments.get("mask"), arguments.get("reduction") in ("mean", "sum_over_batch_size")
        if mask is None or not is_mean or current_step() is None:
            return original(*call.args, **call.kwargs)
        # Keras would weight the mask again for a mean, but not for a sum.
        arguments["mask"] = mask_weights(mask, arguments["dtype"])
        arguments["reduction"] = "sum"
        return original(*call.args, **call.kwargs)

    return by_name(original, apply_mask)


def _aggregating(original: Callable[..., Any]) -> Callable[..., Any]:
    """Treat a vector passed to ``add_loss`` as a sum over the rows, and a scalar as a mean."""

    @functools.wraps(original)
    def aggregate_additional_loss(self: Any, loss: Any) -> Any:
        total = original(self, loss)
        fraction = batch_fraction(total)
        return total if fraction is None or not len(loss.shape) else of_replica(total, fraction)

    return aggregate_additional_loss
