"""Computes a training step of a model twice: by all workers together, and by each worker as one process."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from ..errors import ConfigurationError
from .calls_alone import by_itself
from .joint_calls import same_randomness
from .keras_api import import_package, keras_of
from .replica import replica_strategy
from .same_batches import identical_on_all
from .step_comparison import StepComparison
from .variable_sync import plain_variable

_Step = tuple[dict[str, "np.ndarray[Any, Any]"], dict[str, float]]

# The norm of a gradient counts as at least this fraction of the norm of all gradients. A gradient that is zero in
# theory, such as that of a bias before a normalisation, consists of rounding errors.
_LEAST_NORM = 1e-4
# The base classes of Keras 3's and tf_keras' layers for augmentation.
_RANDOM_LAYERS = ("BaseImageAugmentationLayer", "BaseImagePreprocessingLayer", "BaseRandomLayer")


def compare(model: Any, batch: tuple[Any, Any, Any], tolerance: float, world_size: int) -> StepComparison:
    """Compare a step on ``world_size`` workers; see :func:`compare_step`."""
    _refuse_unfit(model, world_size)
    strategy = replica_strategy(model.distribute_strategy)
    tensors = tf.nest.map_structure(lambda leaf: leaf if leaf is None else tf.convert_to_tensor(leaf), batch)
    if strategy is not None and not identical_on_all(tensors, strategy.collectives):
        raise ConfigurationError(
            "The workers have passed different batches to compare_step. Pass the same global batch on all of them. "
            "Rows of a DataFrame's shard differ between workers; collect a few hundred rows of the DataFrame before "
            "run(), and pass them as an argument."
        )
    together = alone = _step(model, tensors)
    if strategy is not None:
        with by_itself(model):
            alone = _step(model, tensors)
    causes = list(_causes(model))
    times = {path: gradient * world_size for path, gradient in together[0].items()}
    different, rescaled = (_differences(alone[0], each) for each in (together[0], times))
    worst = max(different.values(), default=0.0)
    if worst > tolerance and max(rescaled.values()) < worst / 10:
        causes.insert(
            0,
            f"all gradients are about 1/{world_size} of those in one process, so the loss is a sum over the "
            "rows. Use a mean, reduction='sum', or tf.nn.compute_average_loss with global_batch_size.",
        )
    logs = {name: (alone[1][name], value) for name, value in together[1].items() if name in alone[1]}
    return StepComparison(world_size, tolerance, different, logs, tuple(causes))


def _refuse_unfit(model: Any, world_size: int) -> None:
    """Reject a model whose step cannot be compared.

    Raises:
        ConfigurationError: If the model is not compiled, has no variables yet, or has a strategy of TensorFlow's.
    """
    if replica_strategy(model.distribute_strategy) is None and world_size > 1:
        raise ConfigurationError(
            "compare_step needs the library's own strategy. With several GPUs per task or use_custom_strategy, "
            "training follows the rules of TensorFlow's strategy instead."
        )
    if getattr(model, "optimizer", None) is None:
        raise ConfigurationError("compare_step needs a compiled model. Call model.compile first.")
    if not model.built or not model.trainable_variables:
        raise ConfigurationError(
            "compare_step needs a model whose variables exist. Create its first layer with an Input, or call the model "
            "with a few rows first, model(x[:2])."
        )


def _step(model: Any, batch: tuple[Any, Any, Any]) -> _Step:
    """Run a step; return the gradients by the paths of their variables, and the logs."""
    x, y, sample_weight = batch
    with _unchanged(model), _recording(model) as recorders:
        model.reset_metrics()
        logs = model.train_on_batch(x, y, sample_weight=sample_weight, return_dict=True)
        return _gradients(recorders), {name: float(value) for name, value in logs.items() if np.ndim(value) == 0}


@contextlib.contextmanager
def _recording(model: Any) -> Iterator[dict[str, Any]]:
    """Replace a model's optimizers by others that keep the gradients, which it yields by attribute."""
    keras = import_package(keras_of(model) or "keras")
    assert keras is not None
    known = (keras.optimizers.Optimizer, getattr(keras.optimizers, "legacy", keras.optimizers).Optimizer)
    replaced = {name: value for name, value in vars(model).items() if isinstance(value, known)}
    functions = {name: getattr(model, name) for name in ("train_function", "train_tf_function") if hasattr(model, name)}
    recorder_class, recorder_of = _recorder_class(keras), dict[int, Any]()
    with model.distribute_strategy.scope():
        for name, optimizer in replaced.items():  # a model may have two names for one optimizer
            setattr(model, name, recorder_of.setdefault(id(optimizer), recorder_class()))
    model.train_function = None
    try:
        yield {name: getattr(model, name) for name in replaced}
    finally:
        for name, value in (replaced | functions).items():
            setattr(model, name, value)


def _gradients(recorders: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the recorded gradients by the path of the variable, after the optimizer's name if there are several."""
    several = len({id(each) for each in recorders.values()}) > 1
    return {
        f"{name} {path}" if several else path: total.numpy()
        for name, recorder in recorders.items()
        for path, total in recorder.totals.items()
    }


def _recorder_class(keras: Any) -> Any:
    class Recorder(keras.optimizers.SGD):  # type: ignore[misc]
        """An optimizer that adds up gradients, and leaves the variables as they are."""

        def __init__(self) -> None:
            super().__init__()
            self.totals: dict[str, tf.Variable] = {}
            self._total_of: dict[int, tf.Variable] = {}

        def build(self, variables: Any) -> None:
            super().build(variables)
            for variable in variables:
                plain = plain_variable(variable)
                if id(plain) not in self._total_of:
                    path = getattr(variable, "path", None) or plain.name
                    path = path if path not in self.totals else f"{path} ({len(self.totals)})"
                    with tf.init_scope():
                        total = tf.Variable(np.zeros(plain.shape, plain.dtype.as_numpy_dtype), trainable=False)
                    self.totals[path] = self._total_of[id(plain)] = total

        def get_scaled_loss(self, loss: Any) -> Any:  # in tf_keras' optimizers for mixed precision
            return loss

        def get_unscaled_gradients(self, gradients: Any) -> Any:
            return gradients

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any = None) -> None:
            del learning_rate
            total = self._total_of[id(plain_variable(variable))]
            total.assign_add(tf.cast(tf.convert_to_tensor(gradient), total.dtype))

    return Recorder


@contextlib.contextmanager
def _unchanged(model: Any) -> Iterator[None]:
    """Restore the model's variables and the random generators afterwards, and reset its metrics."""
    others = [getattr(model, "_train_counter", None)]  # tf_keras
    generators: list[Any] = [getattr(layer, "_random_generator", None) for layer in model._flatten_layers()]  # tf_keras
    others += [getattr(getattr(each, "_generator", None), "state", None) for each in generators]
    seeds = [(each, each._seed) for each in generators if hasattr(each, "_seed")]  # counts the graphs
    variables = [plain_variable(each) for each in (*model.variables, *others)]
    values = [(each, each.numpy()) for each in variables if isinstance(each, tf.Variable)]
    with same_randomness(model):
        try:
            yield
        finally:
            for generator, seed in seeds:
                generator._seed = seed
            for variable, value in values:
                variable.assign(value)
            model.reset_metrics()


def _differences(
    alone: Mapping[str, np.ndarray[Any, Any]], together: Mapping[str, np.ndarray[Any, Any]]
) -> dict[str, float]:
    """Return the relative difference of each gradient."""
    norms = {path: _norm(gradient) for path, gradient in alone.items()}
    least = _LEAST_NORM * math.hypot(*norms.values())
    found = {}
    for path, gradient in together.items():
        apart = _norm(gradient - alone[path]) if path in alone else math.inf
        found[path] = 0.0 if apart == 0 else apart / max(norms.get(path, 0.0), least, sys.float_info.min)
    return found


def _norm(array: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(array.astype(np.float64).reshape(-1)))


def _causes(model: Any) -> Iterator[str]:
    """Describe the layers of a model that are known to cause differences."""
    layers = list(model._flatten_layers())
    normalizing = [
        layer.name
        for layer in layers
        if _is_a(layer, "BatchNormalization") and not getattr(layer, "synchronized", False)
    ]
    if normalizing:
        yield (
            f"BatchNormalization without synchronized=True ({_some(normalizing)}): each worker normalises with the "
            "statistics of its own rows."
        )
    drawing = [layer.name for layer in layers if _is_a(layer, *_RANDOM_LAYERS)]
    if drawing:
        yield f"layers that draw random numbers ({_some(drawing)}), which may differ between the two computations."


def _is_a(layer: Any, *names: str) -> bool:
    return any(base.__name__ in names for base in type(layer).__mro__)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
