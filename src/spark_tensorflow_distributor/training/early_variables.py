"""Creates the variables of a model's optimizer and metrics before its step is traced.

TensorFlow traces a function a second time if the first trace has created variables, and tracing is most of the time
until the first step. Keras 3 creates these variables within the step.
"""

import inspect
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from .keras_api import import_package
from .keras_internals import build_optimizer, layers_of


def create_early(model: Any, step: Callable[[Any], Any], batch: Any) -> None:
    """Create the variables that Keras' own step would create.

    This is done only if the classes of the model and of its optimizer are Keras' own, all layers are built, and the
    model has a single output. Otherwise the step creates its variables as usual.

    Args:
        model: The model, of Keras 3.
        step: One of its methods: ``train_step``, ``test_step`` or ``predict_step``.
        batch: The specifications of the tensors in a batch.
    """
    keras = import_package("keras")
    name = getattr(inspect.unwrap(step), "__name__", "")
    if keras is None or name not in ("train_step", "test_step") or not _is_keras_builtin(model):
        return
    if vars(model).keys() & {name, "compute_loss", "compute_metrics", "call"}:  # replaced in this object alone
        return
    layers, output = layers_of(model), _single_output(keras, model)
    if output is None or not all(layer.built for layer in layers):  # a layer may create layers when it is first called
        return
    optimizer = model.optimizer if name == "train_step" else None
    if optimizer is not None and not optimizer.built and model.trainable_weights and _is_keras_builtin(optimizer):
        with keras.name_scope(optimizer.name, caller=optimizer):
            build_optimizer(optimizer, model.trainable_weights)
    metrics, labels = getattr(model, "_compile_metrics", None), _labels(keras, batch)
    if metrics is not None and not metrics.built and labels is not None and _has_certain_shape(keras, output, layers):
        metrics.build(labels, output)


def _is_keras_builtin(value: Any) -> bool:
    """Return whether the class of a model, layer or optimizer, and of an optimizer inside it, is Keras' own."""
    inner = getattr(value, "inner_optimizer", None)
    return type(value).__module__.startswith("keras.") and (inner is None or _is_keras_builtin(inner))


def _single_output(keras: ModuleType, model: Any) -> Any:
    """Return the model's symbolic output; None if it has several, or is not known before it is called."""
    outputs = getattr(model, "outputs", None) or ()
    # A functional model may return its only output within a list or a dict.
    output = getattr(model, "output", None) if not isinstance(model, keras.Sequential) else [*outputs, None][0]
    return output if len(outputs) == 1 and isinstance(output, keras.KerasTensor) else None


def _has_certain_shape(keras: ModuleType, output: Any, layers: Sequence[Any]) -> bool:
    """Return whether the output has this shape in the step, too: "accuracy" is another metric if the last one is 1."""
    operations = [each for layer in layers for each in getattr(layer, "operations", ())]
    return output.shape[-1:] not in ((), (None,)) and not any(
        _declares_its_shape(keras, each) for each in [*layers, *operations]
    )


def _declares_its_shape(keras: ModuleType, operation: Any) -> bool:
    """Return whether the shape of a layer's or operation's output is what the user says, not what Keras computes."""
    if isinstance(operation, keras.layers.Lambda):
        return True
    if _is_keras_builtin(operation):
        return False
    if not isinstance(operation, keras.Layer):
        return True
    computed = ("compute_output_shape", "compute_output_spec")  # by calling the layer symbolically
    is_cell = hasattr(operation, "state_size")  # of an RNN, which takes its output's shape from this attribute
    return is_cell or any(getattr(type(operation), name) is not getattr(keras.Layer, name) for name in computed)


def _labels(keras: ModuleType, batch: Any) -> Any:
    """Return a symbolic tensor for the labels; None if there are none, or several."""
    if not isinstance(batch, tuple):
        return None
    labels = keras.utils.unpack_x_y_sample_weight(batch)[1]
    is_tensor = type(labels).__name__ == "TensorSpec" and labels.shape.rank is not None
    return keras.KerasTensor(tuple(labels.shape), labels.dtype.name) if is_tensor else None
