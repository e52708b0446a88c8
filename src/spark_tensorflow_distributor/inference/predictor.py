"""Calls a model with NumPy arrays, through graphs that are traced only once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import tensorflow as tf

from ..errors import DataError
from ..formatting import one_line
from .features import Inputs, match_inputs, reshape_dims, shape_text
from .outputs import Output, output_names
from .rows import Rows

if TYPE_CHECKING:
    from .loading import LoadedModel

# A dense, ragged or sparse tensor.
Tensor: TypeAlias = Any
# Builds the argument of a model's call from the tensors of the features.
Arrangement: TypeAlias = Callable[[Sequence[Tensor]], object]

# Number of graphs that are traced for exact shapes; for further shapes, sizes are left open.
_MAX_EXACT = 4


class Predictor:
    """Calls a model with NumPy arrays, and traces a graph for each combination of feature types and shapes.

    Args:
        model: The loaded model.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._functions: dict[tuple[object, ...], tuple[Callable[..., list[Tensor]], list[str]]] = {}

    def __call__(self, features: Sequence[Rows], is_single: bool, is_named: bool) -> list[Rows]:
        """Return the model's outputs for a batch of rows.

        Args:
            features: The features.
            is_single: Whether the model gets one tensor instead of a collection of tensors.
            is_named: Whether the features' names are meaningful, rather than mere numbers.

        Raises:
            DataError: If the features do not fit the model.
        """
        key = (is_single, is_named, *((rows.name, rows.dtype, rows.dims, len(rows.lengths)) for rows in features))
        if key not in self._functions:
            is_exact = len(self._functions) < _MAX_EXACT
            if not is_exact:  # every batch may have different lengths: leave sizes open from now on
                key = (is_single, is_named, *((r.name, r.dtype, len(r.dims), len(r.lengths)) for r in features))
            if key not in self._functions:
                self._functions[key] = self._trace(features, is_single, is_named, is_exact)
        function, names = self._functions[key]
        outputs = function(*map(tensor_of, features))
        return [_to_rows(name, tensor) for name, tensor in zip(names, outputs, strict=True)]

    def describe(self) -> list[Output] | None:
        """Return the outputs of the model; see :func:`describe_outputs`."""
        return describe_outputs(self._model)

    def _trace(
        self, features: Sequence[Rows], is_single: bool, is_named: bool, is_exact: bool
    ) -> tuple[Callable[..., list[Tensor]], list[str]]:
        arrange = arrangement(self._model.inputs, features, is_single, is_named)
        names: list[str] = []

        def run(*tensors: Tensor) -> list[Tensor]:
            outputs = _flatten(self._model.call(arrange(tensors)), self._model.output_names)
            names[:] = [name for name, _ in outputs]
            return [_spark_compatible(tensor) for _, tensor in outputs]

        signature = [type_spec_of(rows, is_exact) for rows in features]
        function = tf.function(run, input_signature=signature, autograph=self._model.autograph)
        try:
            function.get_concrete_function()
        except Exception as error:
            given = ", ".join(f"{rows.name!r} {shape_text(rows.dims)} {rows.dtype}" for rows in features)
            raise DataError(
                f"The model cannot be called with the features {given}. It takes {self._model.inputs}. "
                f"{one_line(error)}\nCheck feature_columns and stack."
            ) from error
        return function, list(names)


def arrangement(inputs: Inputs, features: Sequence[Rows], is_single: bool, is_named: bool) -> Arrangement:
    """Return a function that arranges the features' tensors as the model expects them.

    Raises:
        DataError: If the features do not fit the model.
    """
    if inputs.form == "unknown":
        if is_single:
            return lambda tensors: tensors[0]
        if not is_named:
            return list
        return lambda tensors: {rows.name: tensor for rows, tensor in zip(features, tensors, strict=True)}
    sources = match_inputs([rows.name for rows in features], is_single, inputs)
    shapes = [
        reshape_dims(features[source].name, features[source].dims, features[source].dtype, wanted)
        for source, wanted in zip(sources, inputs.inputs, strict=True)
    ]

    def arrange(tensors: Sequence[Tensor]) -> object:
        arranged = []
        for source, shape, wanted in zip(sources, shapes, inputs.inputs, strict=True):
            tensor = tensors[source]
            if shape is not None:
                tensor = tf.reshape(tensor, [tf.shape(tensor)[0], *shape])
            arranged.append(tf.cast(tensor, wanted.dtype) if wanted.dtype else tensor)
        return _structure(inputs, arranged)

    return arrange


def _structure(inputs: Inputs, tensors: Sequence[Tensor]) -> object:
    """Combine the tensors, one per input, into the structure that the model is called with."""
    if inputs.form == "dict":
        return {wanted.name: tensor for wanted, tensor in zip(inputs.inputs, tensors, strict=True)}
    return tensors[0] if inputs.form == "tensor" else list(tensors)


def type_spec_of(rows: Rows, is_exact: bool = True) -> tf.TypeSpec:
    """Return the type of a feature's tensor for any number of rows; ``is_exact`` also fixes the size of each row."""
    if rows.lengths:
        return tf.RaggedTensorSpec([None] * (len(rows.lengths) + 1), rows.dtype, len(rows.lengths))
    return tf.TensorSpec([None, *(size if is_exact else None for size in rows.dims)], rows.dtype)


def tensor_of(rows: Rows) -> Tensor:
    """Return a feature's rows as a dense or ragged tensor."""
    tensor = tf.convert_to_tensor(rows.data, rows.dtype)
    return tf.RaggedTensor.from_nested_row_lengths(tensor, rows.lengths, validate=False) if rows.lengths else tensor


def _to_rows(name: str, tensor: Tensor) -> Rows:
    if isinstance(tensor, tf.RaggedTensor):
        return Rows(name, tensor.flat_values.numpy(), [level.numpy() for level in tensor.nested_row_lengths()])
    return Rows(name, tensor.numpy())


def _spark_compatible(tensor: Tensor) -> Tensor:
    """Convert a tensor to a type and form that Spark supports."""
    if tensor.dtype.name in ("float16", "bfloat16"):
        return tf.cast(tensor, tf.float32)
    return tf.sparse.to_dense(tensor) if isinstance(tensor, tf.SparseTensor) else tensor


def _flatten(result: object, declared: Sequence[str] | None) -> list[tuple[str, Tensor]]:
    """Return a model's outputs, each with its name."""
    keys = list(result) if isinstance(result, dict) else None
    values = list(result.values()) if isinstance(result, dict) else result
    tensors = list(values) if isinstance(values, list | tuple) else [values]
    if not all(hasattr(tensor, "dtype") for tensor in tensors):
        raise DataError(
            f"The model returns {tf.nest.map_structure(type, result)}; it must return a tensor, or a list, tuple or "
            "dict of tensors."
        )
    return list(zip(output_names(len(tensors), keys, declared), tensors, strict=True))


def describe_outputs(model: LoadedModel) -> list[Output] | None:
    """Return a model's outputs; None if the shapes of its inputs or the rank of an output are unknown."""
    if model.inputs.form == "unknown" or any(wanted.dims is None for wanted in model.inputs.inputs):
        return None
    specs = [tf.TensorSpec([None, *(wanted.dims or ())], wanted.dtype) for wanted in model.inputs.inputs]
    outputs: list[tuple[str, Tensor]] = []

    def run(*tensors: Tensor) -> list[Tensor]:
        outputs[:] = _flatten(model.call(_structure(model.inputs, tensors)), model.output_names)
        return [tensor for _, tensor in outputs]

    tf.function(run, input_signature=specs, autograph=model.autograph).get_concrete_function()
    if any(tensor.shape.rank is None for _, tensor in outputs):
        return None
    return [Output(name, tuple(tensor.shape)[1:], tensor.dtype.name) for name, tensor in outputs]
