"""Creates the variables of a model's optimizer and metrics before its step is traced.

TensorFlow traces a function a second time if the first trace has created variables, and tracing is most of the time
until the first step. Keras 3 creates these variables within the step.
"""

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from .keras_api import import_package


def create_early(model: Any, step: Callable[[Any], Any], batch: Any) -> None:
    """Create the variables that Keras' own step would create, if it is certain which ones these are.

    They are for a model that is built and has a single output, whose class is one of Keras' own, so that nobody has
    replaced what its steps do. Elsewhere, the step creates its variables as usual.

    Args:
        model: The model, of Keras 3.
        step: One of its methods: ``train_step``, ``test_step`` or ``predict_step``.
        batch: The specifications of the tensors in a batch.
    """
    keras = import_package("keras")
    name = getattr(inspect.unwrap(step), "__name__", "")
    if keras is None or name not in ("train_step", "test_step") or not _is_kerass_own(model, name):
        return
    output = _single_output(keras, model)
    if not model.built or output is None:
        return
    optimizer = model.optimizer if name == "train_step" else None
    if optimizer is not None and not optimizer.built and model.trainable_weights:
        with keras.name_scope(optimizer.name, caller=optimizer):
            optimizer.build(model.trainable_weights)
    metrics, labels = getattr(model, "_compile_metrics", None), _labels(keras, batch)
    if metrics is not None and not metrics.built and labels is not None:
        metrics.build(labels, output)


def _is_kerass_own(model: Any, name: str) -> bool:
    """Return whether neither the model's class nor its attributes change what a step does."""
    replaced = vars(model).keys() & {name, "compute_loss", "compute_metrics", "call"}
    return type(model).__module__.startswith("keras.") and not replaced


def _single_output(keras: ModuleType, model: Any) -> Any:
    """Return the model's symbolic output; None if it has several, or is not known before it is called."""
    outputs = getattr(model, "outputs", None) or ()
    # A functional model may return its only output within a list or a dict.
    output = getattr(model, "output", None) if not isinstance(model, keras.Sequential) else [*outputs, None][0]
    return output if len(outputs) == 1 and isinstance(output, keras.KerasTensor) else None


def _labels(keras: ModuleType, batch: Any) -> Any:
    """Return a symbolic tensor for the labels; None if there are none, or several."""
    if not isinstance(batch, tuple):
        return None
    labels = keras.utils.unpack_x_y_sample_weight(batch)[1]
    is_tensor = type(labels).__name__ == "TensorSpec" and labels.shape.rank is not None
    return keras.KerasTensor(tuple(labels.shape), labels.dtype.name) if is_tensor else None
