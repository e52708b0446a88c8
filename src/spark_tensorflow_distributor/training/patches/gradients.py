"""Patches that combine gradients over the workers before an optimizer uses them."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import tensorflow as tf

from ..gradient_mean import already_combined, combined_gradients, strategy_to_combine
from ..gradient_recorder import record_if_comparing
from ..private_names import KERAS_OPTIMIZER
from ..replica import ReplicaStrategy
from ..replica_step import ReplicaStep, current_step
from ..variable_sync import plain_variable
from .losses import of_replica

# Seen in loops outside of Strategy.run: optimizers of Keras 3; for tf_keras, the names of their variables.
_in_user_loops: weakref.WeakSet[Any] = weakref.WeakSet()
_variables_in_user_loops: set[tuple[str, ...]] = set()


def gradients(keras: ModuleType) -> None:
    """Combine gradients when ``apply`` begins.

    Keras sums them at the last moment. By then, each worker has clipped its own gradient, whose norm differs from the
    norm of the whole batch's gradient, and has checked only its own gradient for overflow, so a single worker might
    skip a step.
    """
    for owner in (KERAS_OPTIMIZER.load().BaseOptimizer, keras.optimizers.LossScaleOptimizer):
        owner.apply = _combining(owner.apply)
        owner.scale_loss = weighting_loss(owner.scale_loss)
    tf.GradientTape.gradient = _noting_results(tf.GradientTape.gradient)


def weighting_loss(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the method that scales an optimizer's loss, so that the gradient is multiplied by the replica's fraction.

    Without this, gradients would be weighted only after they are computed. Until then they would be larger than in one
    process: in half precision they would overflow earlier, and quantised products would have other scales. The loss
    itself keeps its value, which the program may log.
    """

    @functools.wraps(original)
    def scale_loss(self: Any, loss: Any) -> Any:
        step = current_step()
        scaled = original(self, loss)
        if step is None:
            return scaled
        step.loss_weighting.scaled_by(self)
        if callable(scaled):  # tf_keras accepts a function that returns the loss
            return lambda: _with_weighted_gradient(scaled(), step)
        return _with_weighted_gradient(scaled, step)

    return scale_loss


def _with_weighted_gradient(loss: Any, step: ReplicaStep) -> tf.Tensor:
    loss = tf.convert_to_tensor(loss)
    fraction = tf.cast(step.batch_fraction(), loss.dtype)
    if loss.shape.rank:  # the gradient of a vector is that of its sum
        fraction = of_replica(fraction, fraction)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def weighted(value: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        def weight(gradient: tf.Tensor) -> tf.Tensor:
            product = gradient * fraction
            step.loss_weighting.weights(product)
            return product

        return tf.identity(value), weight

    return weighted(loss)


def _noting_results(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``GradientTape.gradient`` so that an eager step knows which gradients are weighted."""

    @functools.wraps(original)
    def gradient(self: Any, *args: Any, **kwargs: Any) -> Any:
        step = current_step()
        if step is None or not tf.executing_eagerly():
            return original(self, *args, **kwargs)
        step.loss_weighting.begin_tape()
        result = original(self, *args, **kwargs)
        step.loss_weighting.end_tape(result)
        return result

    return gradient


def _combining(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def apply(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
        strategy, grads = strategy_to_combine(), list(grads)
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
        variables = self._trainable_variables if trainable_variables is None else trainable_variables
        combined = grads
        if strategy is not None:
            note_user_loop(strategy, self, variables)
            combined = combined_gradients(strategy, self, grads, variables)
        if record_if_comparing(self, grads, combined, variables):
            return None
        if strategy is None:
            return original(self, grads, trainable_variables)
        with already_combined(strategy):
            return original(self, combined, trainable_variables)

    return apply


def combining_pairs(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``apply_gradients`` of tf_keras' wrapper for TensorFlow 1's optimizers, which sum gradients themselves."""

    @functools.wraps(original)
    def apply_gradients(self: Any, grads_and_vars: Any) -> Any:
        strategy, given = strategy_to_combine(), list(grads_and_vars)
        pairs = [(gradient, variable) for gradient, variable in given if gradient is not None]
        gradients, variables = [gradient for gradient, _ in pairs], [variable for _, variable in pairs]
        combined = gradients if strategy is None else combined_gradients(strategy, self, gradients, variables)
        if record_if_comparing(self, gradients, combined, variables):
            return None
        if strategy is None:
            return original(self, given)
        with already_combined(strategy):
            return original(self, list(zip(combined, variables, strict=True)))

    return apply_gradients


def note_user_loop(strategy: ReplicaStrategy, optimizer: Any, variables: Sequence[Any]) -> None:
    """Synchronise variables when an optimizer is first used in a custom loop outside of ``Strategy.run``.

    For the first such optimizer, the chief also prints how to share the work.
    """
    if current_step() is not None or tf.distribute.get_replica_context() is not None:
        return
    seen: Any = _variables_in_user_loops if isinstance(optimizer, tuple) else _in_user_loops
    if optimizer in seen:
        return
    is_first = not _in_user_loops and not _variables_in_user_loops
    seen.add(optimizer)
    strategy.variables.synchronise([each for each in map(plain_variable, variables) if isinstance(each, tf.Variable)])
    if is_first and strategy.collectives.rank == 0:
        print(
            "This training loop calls the optimizer outside of strategy.run: every worker trains on all the data it "
            "reads, and gradients are averaged over the workers. If all workers read the same data, the numbers are "
            "those of a single process, but training is not faster. To share the work, use model.fit, or pass the step "
            "to tf.distribute.get_strategy().run and the dataset to experimental_distribute_dataset, or pass a "
            "DataFrame to run() and read the worker's shard with to_tf(..., drop_remainder=True).",
            flush=True,
        )
