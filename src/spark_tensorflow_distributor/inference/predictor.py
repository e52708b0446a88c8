"""A model as a function of NumPy arrays, by way of a graph that is traced once."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from .features import Dims, Inputs, bind, fitted, shape_text
from .loading import LoadedModel
from .outputs import Output, output_names
from .rows import Rows

if TYPE_CHECKING:
    import tensorflow as tf

# Shapes for which a model is traced by themselves; beyond, sizes are left open.
_MAX_EXACT = 4


class Predictor:
    """A model that is called with NumPy arrays, and traced once for each kind of features.

    Args:
        model: the loaded model.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._functions: dict[Any, Any] = {}

    def __call__(self, features: Sequence[Rows], is_one: bool, named: bool) -> list[Rows]:
        """What the model says to these rows, output by output.

        Args:
            features: the tensors.
            is_one: there is one, and it is no collection.
            named: they have names that mean something.

        Raises:
            DataError: they do not fit the model.
        """
        import tensorflow as tf

        key = (is_one, named, *((rows.name, rows.dtype, rows.dims, len(rows.lengths)) for rows in features))
        if key not in self._functions:
            if len(self._functions) >= _MAX_EXACT:
                # Every batch has a length of its own: leave the sizes open, for this and all that follow.
                key = (is_one, named, *((r.name, r.dtype, len(r.dims), len(r.lengths)) for r in features))
            if key not in self._functions:
                self._functions[key] = self._trace(features, is_one, named, exact=len(self._functions) < _MAX_EXACT)
        function, names = self._functions[key]
        outputs = function(*(_tensor(tf, rows) for rows in features))
        return [_taken(name, tensor) for name, tensor in zip(names, outputs, strict=True)]

    def describe(self) -> list[Output] | None:
        """What the model will give, where it says what it wants; else None."""
        return outputs_of(self._model)

    def _trace(self, features: Sequence[Rows], is_one: bool, named: bool, exact: bool) -> tuple[Any, list[str]]:
        import tensorflow as tf

        arrange = arrangement(self._model.inputs, features, is_one, named)
        names: list[str] = []

        def run(*tensors: Any) -> list[Any]:
            found = _flattened(tf, self._model.call(arrange(tensors)), self._model.output_names)
            names[:] = [name for name, _ in found]
            return [_for_spark(tf, tensor) for _, tensor in found]

        signature = [_spec(tf, rows, exact) for rows in features]
        function = tf.function(run, input_signature=signature, autograph=self._model.autograph)
        try:
            function.get_concrete_function()
        except Exception as error:
            given = ", ".join(f"{rows.name!r} {shape_text(rows.dims)} {rows.dtype}" for rows in features)
            raise DataError(
                f"The model cannot be called with the features {given}. It takes {self._model.inputs}. "
                f"{type(error).__name__}: {error}\nCheck feature_columns and stack."
            ) from error
        return function, list(names)


def arrangement(inputs: Inputs, features: Sequence[Rows], is_one: bool, named: bool) -> Any:
    """A function from the features' tensors to what the model is called with.

    Raises:
        DataError: the features do not fit the model.
    """
    import tensorflow as tf

    if inputs.form == "any":
        if is_one:
            return lambda tensors: tensors[0]
        if not named:
            return list
        return lambda tensors: {rows.name: tensor for rows, tensor in zip(features, tensors, strict=True)}
    places = bind([rows.name for rows in features], is_one, inputs)
    sizes = [
        fitted(features[place].name, features[place].dims, features[place].dtype, wanted)
        for place, wanted in zip(places, inputs.inputs, strict=True)
    ]

    def arrange(tensors: Sequence[Any]) -> Any:
        fitting = []
        for place, size, wanted in zip(places, sizes, inputs.inputs, strict=True):
            tensor = tensors[place] if size is None else _reshaped(tf, tensors[place], size)
            fitting.append(tf.cast(tensor, wanted.dtype) if wanted.dtype else tensor)
        return in_form(inputs, fitting)

    return arrange


def _reshaped(tf: Any, tensor: Any, size: Dims) -> Any:
    return tf.reshape(tensor, [tf.shape(tensor)[0], *size])


def in_form(inputs: Inputs, tensors: Sequence[Any]) -> Any:
    """A tensor for each input, as the model takes them."""
    if inputs.form == "dict":
        return {wanted.name: tensor for wanted, tensor in zip(inputs.inputs, tensors, strict=True)}
    return tensors[0] if inputs.form == "one" else list(tensors)


def _spec(tf: Any, rows: Rows, exact: bool) -> "tf.TypeSpec":
    if rows.lengths:
        return tf.RaggedTensorSpec([None] * (len(rows.lengths) + 1), rows.dtype, len(rows.lengths))
    return tf.TensorSpec([None, *(size if exact else None for size in rows.dims)], rows.dtype)


def _tensor(tf: Any, rows: Rows) -> Any:
    tensor = tf.convert_to_tensor(rows.data, rows.dtype)
    return tf.RaggedTensor.from_nested_row_lengths(tensor, rows.lengths, validate=False) if rows.lengths else tensor


def _for_spark(tf: Any, tensor: Any) -> Any:
    """The tensor in a type that Spark has."""
    if tensor.dtype.name in ("float16", "bfloat16"):
        return tf.cast(tensor, tf.float32)
    return tf.sparse.to_dense(tensor) if isinstance(tensor, tf.SparseTensor) else tensor


def _taken(name: str, tensor: Any) -> Rows:
    if hasattr(tensor, "nested_row_lengths"):
        return Rows(name, tensor.flat_values.numpy(), [level.numpy() for level in tensor.nested_row_lengths()])
    return Rows(name, tensor.numpy())


def _flattened(tf: Any, result: Any, declared: Sequence[str] | None) -> list[tuple[str, Any]]:
    """A model's outputs with their names."""
    keys = list(result) if isinstance(result, dict) else None
    values = list(result.values()) if isinstance(result, dict) else result
    values = list(values) if isinstance(values, list | tuple) else [values]
    if not all(hasattr(value, "dtype") for value in values):
        raise DataError(
            f"The model returns {tf.nest.map_structure(type, result)}; it must return a tensor, or a list, tuple or "
            "dict of tensors."
        )
    return list(zip(output_names(len(values), keys, declared), values, strict=True))


def outputs_of(model: LoadedModel) -> list[Output] | None:
    """What a model will give, where it says what it wants; else None."""
    import tensorflow as tf

    if model.inputs.form == "any" or any(wanted.dims is None for wanted in model.inputs.inputs):
        return None
    specs = [tf.TensorSpec([None, *(wanted.dims or ())], wanted.dtype) for wanted in model.inputs.inputs]

    def run(*tensors: Any) -> list[Any]:
        found[:] = _flattened(tf, model.call(in_form(model.inputs, tensors)), model.output_names)
        return [tensor for _, tensor in found]

    found: list[tuple[str, Any]] = []
    tf.function(run, input_signature=specs, autograph=model.autograph).get_concrete_function()
    if any(tensor.shape.rank is None for _, tensor in found):
        return None
    return [Output(name, tuple(tensor.shape)[1:], tensor.dtype.name) for name, tensor in found]
