"""Computes a training step of a model twice: by all workers together, and by each worker as one process."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from ..errors import ConfigurationError
from ..formatting import one_line
from .calls_alone import by_itself
from .gradient_recorder import GradientRecorder, norm, recording
from .keras_api import keras_of
from .keras_internals import layers_of
from .replica import ReplicaStrategy, replica_strategy
from .replica_hooks import model_variables, synchronised_models
from .same_batches import identical_on_all
from .step_comparison import StepComparison
from .step_function import as_tensor
from .variable_sync import plain_variable
from .without_effects import eager, unchanged

# The norm of a gradient counts as at least this fraction of the norm of all gradients that a worker has passed to the
# optimizer, because rounding errors must not count as differences. A gradient that is zero in theory, such as that of a
# bias before a normalisation, consists of them, and so do all gradients at a minimum, where the workers' cancel out.
_LEAST_FRACTION = 1e-3
# Default tolerances; rounding errors stay below them.
_TOLERANCE, _TOLERANCE_OF_HALF_PRECISION = 1e-3, 5e-2
# Stands for differences that are not finite, where differences are compared with each other.
_LARGEST = sys.float_info.max

_UNBUILT = (
    "compare_step needs a model all of whose variables exist. Create its first layer with an Input, or call the model "
    "with a few rows first, model(x[:2])."
)


class _Step(NamedTuple):
    """What a step has computed.

    Attributes:
        gradients: By name.
        least_norms: For each gradient, the norm below which it consists of rounding errors.
        logs: The scalar logs, by name.
    """

    gradients: dict[str, np.ndarray[Any, Any]]
    least_norms: dict[str, float]
    logs: dict[str, float]


def compare(model: Any, batch: tuple[Any, Any, Any], tolerance: float | None) -> StepComparison:
    """Compare a step on several workers; see :func:`compare_step`."""
    strategy = replica_strategy(model.distribute_strategy) if keras_of(model) else None
    if strategy is None:
        raise ConfigurationError(
            "compare_step needs a Keras model, created in the training function, and the library's own strategy. With "
            "several GPUs per task or use_custom_strategy, training follows the rules of TensorFlow's strategy."
        )
    tensors = tf.nest.map_structure(_converted_for(model), batch)
    _refuse_unfit(model, tensors, strategy)
    if tolerance is None:
        types = {getattr(layer, "compute_dtype", None) for layer in layers_of(model)}
        is_rounded = strategy.collectives.compresses_gradients or types & {"float16", "bfloat16"}
        tolerance = _TOLERANCE_OF_HALF_PRECISION if is_rounded else _TOLERANCE
    was_synchronised = model in synchronised_models
    strategy.variables.synchronise()  # new ones, as any call of a method does
    try:
        with unchanged(model, strategy):
            strategy.variables.synchronise(model_variables(model))
            together = _step(model, tensors, strategy)
            with by_itself(model):
                alone = _step(model, tensors, strategy)
    finally:
        if not was_synchronised:
            synchronised_models.discard(model)
    if not together.gradients and not alone.gradients:
        raise ConfigurationError(
            "The step has neither called an optimizer nor changed a trainable variable, so there is nothing to "
            "compare. A train_step that accumulates gradients itself cannot be compared."
        )
    mine = _comparison(model, together, alone, tolerance, strategy.collectives.world_size)
    # Rounding may differ between processors, but all workers must come to the same decision.
    chief = json.loads(strategy.collectives.broadcast_bytes(json.dumps(dataclasses.asdict(mine)).encode()) or b"{}")
    logs = {name: tuple(pair) for name, pair in chief["logs"].items()}
    return StepComparison(**{**chief, "logs": logs, "causes": tuple(chief["causes"])})


def _converted_for(model: Any) -> Any:
    """Return a function that converts a leaf of a batch as ``fit`` does."""
    floatx = sys.modules[keras_of(model)].backend.floatx()

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, tf.data.Dataset) or hasattr(leaf, "__next__"):
            raise ConfigurationError(
                f"compare_step takes the arrays or tensors of one batch, not a {type(leaf).__name__}."
            )
        if hasattr(leaf, "to_numpy"):  # pandas; fit turns a Series into a column
            leaf = leaf.to_numpy()
            leaf = leaf[:, np.newaxis] if leaf.ndim == 1 else leaf
        try:
            tensor = as_tensor(leaf)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"compare_step takes the arrays or tensors of one batch. A {type(leaf).__name__} cannot be converted "
                f"to a tensor: {one_line(error)}"
            ) from None
        return tf.cast(tensor, floatx) if tensor is not None and tensor.dtype.is_floating else tensor

    return convert


def _refuse_unfit(model: Any, batch: Any, strategy: ReplicaStrategy) -> None:
    """Reject what cannot be compared.

    Raises:
        ConfigurationError: If the model is not compiled or has no variables yet, or the batch is too small or differs
            between the workers.
    """
    if getattr(model, "optimizer", None) is None and not getattr(model, "compiled", False):
        raise ConfigurationError("compare_step needs a compiled model. Call model.compile first.")
    if not _trainable(model):
        raise ConfigurationError(_UNBUILT)
    rows = next((int(leaf.shape[0]) for leaf in tf.nest.flatten(batch) if leaf is not None and leaf.shape.rank), 0)
    workers = strategy.collectives.world_size
    if rows < workers:
        raise ConfigurationError(
            f"compare_step got a batch of {rows} rows for {workers} workers, so each worker would compute all rows. "
            "Pass a batch as large as that of fit."
        )
    if not identical_on_all(batch, strategy.collectives):
        raise ConfigurationError(
            "The workers have passed different batches to compare_step. Pass the same global batch on all workers. The "
            "rows of a DataFrame's shard differ between them: collect a few hundred rows before run(), and pass them "
            "to the function."
        )


def _trainable(model: Any) -> list[Any]:
    try:
        return list(model.trainable_variables)
    except ValueError:  # a tf_keras model that is not built yet
        return []


def _step(model: Any, batch: tuple[Any, Any, Any], strategy: ReplicaStrategy) -> _Step:
    """Run a step without applying its gradients."""
    x, y, sample_weight = batch
    trainable = _trainable(model)
    before = [np.array(plain_variable(each).numpy()) for each in trainable]
    with unchanged(model, strategy), eager(model), recording() as recorder:
        model.reset_metrics()
        logs = model.train_on_batch(x, y, sample_weight=sample_weight, return_dict=True)
        if len(_trainable(model)) != len(trainable):
            raise ConfigurationError(_UNBUILT)
        found = _recorded(recorder, trainable)
        for variable, value in zip(trainable, before, strict=True):
            changed = plain_variable(variable).numpy()
            if not np.array_equal(changed, value):  # by the program itself, since no optimizer changes anything
                name = f"the change of {_path(variable)}"
                found.gradients[name], found.least_norms[name] = changed - value, 0.0
    found.logs.update((name, float(value)) for name, value in logs.items() if _is_number(value))
    return found


def _is_number(value: Any) -> bool:
    array = np.asarray(value)
    return array.ndim == 0 and array.dtype.kind in "fiub"


def _recorded(recorder: GradientRecorder, trainable: list[Any]) -> _Step:
    """Return the recorded gradients by the paths of their variables."""
    paths = {id(plain_variable(each)): _path(each) for each in trainable}
    step = _Step({}, {}, {})
    for number, (gradients, own) in enumerate(zip(recorder.gradients, recorder.own_norms, strict=True), 1):
        of = f" for optimizer {number}" if len(recorder.gradients) > 1 else ""
        for key, gradient in gradients.items():
            name = f"the gradient of {paths.get(key, 'a variable outside of the model')}{of}"
            while name in step.gradients:
                name += "'"
            step.gradients[name] = gradient
            step.least_norms[name] = _LEAST_FRACTION * own
    return step


def _path(variable: Any) -> str:
    return str(getattr(variable, "path", None) or variable.name)


def _comparison(model: Any, together: _Step, alone: _Step, tolerance: float, world_size: int) -> StepComparison:
    different = _differences(alone, together, 1)
    causes = list(_causes(model))
    worst = max(map(_finite, different.values()))
    if (
        tolerance < worst < _LARGEST
        and max(map(_finite, _differences(alone, together, world_size).values())) < worst / 10
    ):
        causes.insert(
            0,
            f"all gradients are about 1/{world_size} of those in one process, so the loss is probably a sum over the "
            "rows. Use a mean, reduction='sum', or tf.nn.compute_average_loss with global_batch_size.",
        )
    if not all(np.isfinite(each).all() for each in alone.gradients.values()):
        causes.insert(
            0,
            "the gradients are not finite in one process either: the data contain NaN or infinity, or half precision "
            "overflows, as in the first steps with a loss scale.",
        )
    names = {**together.logs, **alone.logs}
    logs = {name: (alone.logs.get(name, np.nan), together.logs.get(name, np.nan)) for name in names}
    return StepComparison(world_size, tolerance, different, logs, tuple(causes))


def _finite(value: float) -> float:
    return value if np.isfinite(value) else _LARGEST


def _differences(alone: _Step, together: _Step, factor: int) -> dict[str, float]:
    """Return the relative difference of each gradient, if those of the workers are multiplied by a factor."""
    found = {}
    for name in {**together.gradients, **alone.gradients}:
        if name not in together.gradients or name not in alone.gradients:
            found[name] = float("inf")
            continue
        expected, gradient = alone.gradients[name], together.gradients[name]
        apart = norm(gradient.astype(np.result_type(gradient.dtype, np.float32)) * factor - expected)
        least = max(together.least_norms[name], sys.float_info.min)
        found[name] = 0.0 if apart == 0 else apart / max(norm(expected), least)
    return found


def _causes(model: Any) -> Iterator[str]:
    """Describe the layers of a model that are known to cause differences."""
    layers = [(layer.name, [base.__name__ for base in type(layer).__mro__], layer) for layer in layers_of(model)]
    normalizing = [
        name
        for name, bases, layer in layers
        if "BatchNormalization" in bases and layer.trainable and not getattr(layer, "synchronized", False)
    ]
    if normalizing:
        yield (
            f"BatchNormalization without synchronized=True ({_listed(normalizing)}): each worker normalises with the "
            "statistics of its own rows."
        )
    drawing = [name for name, bases, _ in layers if bases[0].startswith("Random")]
    if drawing:
        yield f"layers that draw random numbers ({_listed(drawing)}): each worker draws its own."


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
