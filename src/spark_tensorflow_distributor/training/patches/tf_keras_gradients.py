"""The patch for tf_keras' optimizers, which combine gradients in a different place from those of Keras 3."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..gradient_mean import combined_gradients, strategy_to_combine
from ..gradient_recorder import GradientsRecorded, record_if_comparing
from ..private_names import TF_KERAS_LOSS_SCALE, TF_KERAS_OPTIMIZER, TF_KERAS_V1_OPTIMIZERS
from .gradients import combining_pairs, note_user_loop, weighting_loss

_state = threading.local()


def gradients(keras: ModuleType) -> None:
    """Combine gradients where tf_keras' optimizers sum them, which is before clipping."""
    module: Any = TF_KERAS_OPTIMIZER.load()
    original = module.all_reduce_sum_gradients

    @functools.wraps(original)
    def all_reduce_sum_gradients(grads_and_vars: Any) -> Any:
        strategy, pairs = strategy_to_combine(), list(grads_and_vars)
        optimizer = getattr(_state, "optimizer", module)
        gradients, variables = [gradient for gradient, _ in pairs], [variable for _, variable in pairs]
        combined = gradients
        if strategy is not None:
            module.filter_empty_gradients(pairs)  # raises or warns
            note_user_loop(strategy, tuple(variable.name for variable in variables), variables)
            combined = combined_gradients(strategy, optimizer, gradients, variables)
        if record_if_comparing(optimizer, gradients, combined, variables):
            raise GradientsRecorded
        return original(pairs) if strategy is None else list(zip(combined, variables, strict=True))

    module.all_reduce_sum_gradients = all_reduce_sum_gradients
    wrapper = TF_KERAS_V1_OPTIMIZERS.load().TFOptimizer
    wrapper.apply_gradients = combining_pairs(wrapper.apply_gradients)
    scaling = TF_KERAS_LOSS_SCALE.load()
    scales = (scaling.LossScaleOptimizer, scaling.LossScaleOptimizerV3)
    for owner in scales:
        owner.get_scaled_loss = weighting_loss(owner.get_scaled_loss)
        owner.apply_gradients = _applying(owner.apply_gradients)
    optimizers = keras.optimizers
    for owner in (optimizers.Optimizer, optimizers.legacy.Optimizer, *scales):
        owner.apply_gradients = _ending_when_recorded(owner.apply_gradients)


def _applying(original: Callable[..., Any]) -> Callable[..., Any]:
    """Record which optimizer is applying gradients, for ``all_reduce_sum_gradients``."""

    @functools.wraps(original)
    def apply_gradients(self: Any, *args: Any, **kwargs: Any) -> Any:
        _state.optimizer = self
        try:
            return original(self, *args, **kwargs)
        finally:
            del _state.optimizer

    return apply_gradients


def _ending_when_recorded(original: Callable[..., Any]) -> Callable[..., Any]:
    """End the outermost call of an optimizer once its gradients are recorded, before anything changes."""

    @functools.wraps(original)
    def apply_gradients(self: Any, *args: Any, **kwargs: Any) -> Any:
        is_inner, _state.is_applying = getattr(_state, "is_applying", False), True
        try:
            return original(self, *args, **kwargs)
        except GradientsRecorded:
            if is_inner:
                raise
            return None
        finally:
            _state.is_applying = is_inner

    return apply_gradients
