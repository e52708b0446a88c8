"""What a worker's part of a batch counts for in the loss."""

import functools
import inspect
import operator
import threading
from collections.abc import Callable
from typing import Any

from ..keras_api import by_name, defining_class
from .batch_parts import present_part, rows_of_part

# Whether the losses of single outputs are what is being computed.
_state = threading.local()


def loss_scaling(tf: Any, keras: Any) -> bool:
    """Divides the loss by the number of replicas before gradients are taken, which are then summed over them.

    A custom ``train_step`` without ``optimizer.scale_loss`` has to do so by itself in these releases. The version tells
    here, since scaling twice would go unnoticed, and releases of the past stay as they are.
    """

    def dividing(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def scale_loss(self: Any, loss: Any) -> Any:
            loss, share = original(self, loss), batch_fraction(tf)
            if share is not None:
                return loss * tf.cast(share, loss.dtype)
            return loss / tf.cast(tf.distribute.get_strategy().num_replicas_in_sync, loss.dtype)

        return scale_loss

    if tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 8):
        return False
    patched = False
    for optimizer in (keras.optimizers.Optimizer, keras.optimizers.LossScaleOptimizer):
        owner = defining_class(optimizer, "scale_loss")
        if not hasattr(owner.scale_loss, "__wrapped__"):
            owner.scale_loss, patched = dividing(owner.scale_loss), True
    return patched


def shares(tf: Any, keras: Any) -> bool:
    """Lets a worker's loss count for the rows, words or weights that it has of the whole batch.

    Keras divides each worker's mean by the number of workers. So where parts are not equal (the remainder of a
    dataset), or where the mean is over what a mask or the weights leave, the sum is not the mean over the whole batch.
    """
    module = keras.src.losses.loss
    if hasattr(module, "scale_loss_for_distribution"):  # before Keras 3.8, ``loss_scaling`` has it
        scale, unscale = module.scale_loss_for_distribution, module.unscale_loss_for_distribution
        module.scale_loss_for_distribution = scaling(tf, scale, operator.mul)
        module.unscale_loss_for_distribution = scaling(tf, unscale, tf.math.divide_no_nan)
    module.apply_mask = _masking(tf, module.apply_mask)
    module.reduce_values = _weighing(tf, module.reduce_values)
    compiled = keras.src.trainers.compile_utils.CompileLoss
    compiled.call = _telling_outputs(compiled.call)
    mean = defining_class(keras.metrics.Mean, "update_state")
    mean.update_state = _of_an_output(tf, mean.update_state)
    return True


def batch_fraction(tf: Any) -> Any:
    """What this replica has of the rows of the batch, 0 to 1; None where that is not known."""
    part, replica = present_part(), tf.distribute.get_replica_context()
    if part is None or replica is None or replica.num_replicas_in_sync == 1:
        return None
    return tf.cast(rows_of_part(part), tf.float32) / tf.cast(part.rows, tf.float32)


def scaling(tf: Any, original: Callable[..., Any], scale: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def scale_loss(value: Any) -> Any:
        share = batch_fraction(tf)
        if share is None:
            return original(value)
        value = tf.convert_to_tensor(value)
        return scale(value, tf.cast(share, value.dtype))

    return scale_loss


def sum_over_replicas(tf: Any, value: Any) -> Any:
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def _masking(tf: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    """Keras weighs what a mask leaves by total / left; both have to be those of the whole batch."""

    def apply_mask(call: inspect.BoundArguments) -> Any:
        arguments = call.arguments
        mask, is_mean = arguments.get("mask"), arguments.get("reduction") in ("mean", "sum_over_batch_size")
        if mask is None or not is_mean or batch_fraction(tf) is None:
            return original(*call.args, **call.kwargs)
        dtype = arguments["dtype"]
        counts = tf.stack([tf.cast(tf.size(mask), dtype), tf.reduce_sum(tf.cast(mask, dtype))])
        total, left = tf.unstack(sum_over_replicas(tf, counts))
        # Any other reduction leaves the mask as it is.
        arguments["mask"] = tf.cast(mask, dtype) * tf.math.divide_no_nan(total, left)
        arguments["reduction"] = "sum"
        return original(*call.args, **call.kwargs)

    return by_name(original, apply_mask)


def _weighing(tf: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    def reduce_values(call: inspect.BoundArguments) -> Any:
        arguments = call.arguments
        weights = arguments.get("sample_weight")
        if arguments.get("reduction") != "mean_with_sample_weight" or weights is None or batch_fraction(tf) is None:
            return original(*call.args, **call.kwargs)
        values = arguments["values"]
        return tf.math.divide_no_nan(
            tf.reduce_sum(values), sum_over_replicas(tf, tf.cast(tf.reduce_sum(weights), values.dtype))
        )

    return by_name(original, reduce_values)


def _telling_outputs(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        _state.is_of_outputs = True
        try:
            return original(*args, **kwargs)
        finally:
            _state.is_of_outputs = False

    return call


def _of_an_output(tf: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    """A model of several outputs reports the loss of each, and counts each step once, of however many rows it is."""

    def update_state(call: inspect.BoundArguments) -> Any:
        if getattr(_state, "is_of_outputs", False) and call.arguments.get("sample_weight") is None:
            share = batch_fraction(tf)
            if share is not None:
                call.arguments["sample_weight"] = share
        return original(*call.args, **call.kwargs)

    return by_name(original, update_state)
