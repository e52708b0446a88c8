"""Matches DataFrame columns to a model's inputs. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..data.columns import Column, columns_of, nearest
from ..errors import ConfigurationError, DataError

Dims = tuple[int | None, ...]


@dataclass(frozen=True)
class Input:
    """One input of a model.

    Attributes:
        name: The input's name, or ``""`` if it has none.
        dims: The input's shape without the batch dimension, with None for a variable size; None if it accepts any
            shape.
        dtype: TensorFlow's name for the input's type, or ``""`` if it accepts any type.
    """

    name: str
    dims: Dims | None
    dtype: str = ""

    def __str__(self) -> str:
        shape = "any shape" if self.dims is None else shape_text(self.dims)
        return f"{self.name!r} {shape} {self.dtype}".rstrip()


@dataclass(frozen=True)
class Inputs:
    """The inputs of a model.

    Attributes:
        form: The argument with which to call the model: one tensor, a list of tensors, a dict of tensors, or unknown.
        inputs: The inputs; empty if the form is unknown.
    """

    form: Literal["tensor", "list", "dict", "unknown"]
    inputs: tuple[Input, ...] = ()

    def __str__(self) -> str:
        return ", ".join(map(str, self.inputs)) or "inputs that it does not declare"


def feature_names(features: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the column names in ``feature_columns``, which is one name or a list of names.

    Raises:
        ConfigurationError: If it is neither, is empty, or repeats a name.
    """
    names = (features,) if isinstance(features, str) else tuple(features or ())
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigurationError(f"feature_columns is {features!r}; it must be a column's name or a list of names.")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigurationError(f"feature_columns names {repeated[0]!r} more than once. Remove the repetition.")
    return names


def select_columns(schema: Mapping[str, Any], names: Sequence[str], argument: str = "feature_columns") -> list[Column]:
    """Return the named columns, and check their types; other columns may be of any type.

    Args:
        schema: The result of ``DataFrame.schema.jsonValue()``.
        names: Column names, or ``outer.inner`` for a field of a struct.
        argument: The argument that names them, for messages.

    Raises:
        DataError: If a column does not exist, or TensorFlow has no equivalent for its type.
    """
    return [_select_column(schema["fields"], name, argument) for name in names]


def _select_column(fields: Sequence[Mapping[str, Any]], name: str, argument: str) -> Column:
    owners = [f for f in fields if name == f["name"] or name.startswith(f["name"] + ".")]
    for column in columns_of({"fields": owners}, "The DataFrame") if owners else ():
        if column.name == name:
            return column
    known = [f["name"] for f in fields]
    for owner in owners:
        inner = columns_of({"fields": [owner]}, "The DataFrame")
        if len(owners) == 1 and owner["name"] == name:
            raise DataError(
                f"The column {name!r} in {argument} is a struct. Name its fields: {', '.join(c.name for c in inner)}."
            )
        known += [column.name for column in inner]
    raise DataError(
        f"The DataFrame has no column {name!r}{nearest(name, known)}. Its columns are {_shorten(known)}. Correct "
        f"{argument}."
    )


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def check_stackable(columns: Sequence[Column]) -> None:
    """Check that columns can be put side by side in one float32 tensor.

    Raises:
        DataError: If a column is neither numeric nor a flat array of numbers.
    """
    for column in columns:
        if not column.is_number or column.depth > 1:
            raise DataError(
                f"stack=True puts numbers and flat arrays side by side, but the column {column.name!r} is of type "
                f"{column.spark_type}. Remove it from feature_columns, convert it in Spark, or use stack=False."
            )


def match_inputs(names: Sequence[str], is_single: bool, inputs: Inputs) -> list[int]:
    """Return, for each input of the model, the position of the feature to feed to it.

    Features are matched to inputs by name. If no names agree, they are matched by order, unless the model is called
    with a dict.

    Args:
        names: Names of the features.
        is_single: Whether the features form one tensor instead of a collection of tensors.
        inputs: The model's inputs, whose form must be known.

    Raises:
        DataError: If the features do not match the inputs.
    """
    wanted = [each.name for each in inputs.inputs]
    given = f"feature_columns gives {len(names)} ({_shorten(names)})"
    if len(wanted) == len(names) == 1:
        return [0]
    if len(wanted) == 1:
        raise DataError(
            f"The model has one input, {inputs}, but {given}. Pass stack=True to put them side by side in one tensor "
            "[batch, k], or name a single column."
        )
    if is_single:
        raise DataError(
            f"The model has {len(wanted)} inputs ({inputs}), but feature_columns gives one tensor. Pass a list of "
            "columns, one for each input, without stack=True."
        )
    if set(wanted) == set(names):
        return [list(names).index(name) for name in wanted]
    if len(wanted) == len(names) and inputs.form != "dict" and not set(wanted) & set(names):
        return list(range(len(names)))
    missing = [name for name in wanted if name not in names]
    unknown = [name for name in names if name not in wanted]
    lacks = f" The input {missing[0]!r} gets no column{nearest(missing[0], unknown)}." if missing else ""
    extra = f" The column {unknown[0]!r} is not an input{nearest(unknown[0], missing)}." if unknown else ""
    raise DataError(
        f"The model has {len(wanted)} inputs ({inputs}), but {given}.{lacks}{extra} Name each column after its input "
        "(DataFrame.withColumnRenamed, or an alias)."
    )


def reshape_dims(name: str, dims: Dims, dtype: str, wanted: Input) -> Dims | None:
    """Return the dimensions to which to reshape a feature's rows for an input, or None if they already fit.

    The result has -1 for a size that follows from the others.

    Args:
        name: Name of the feature, for messages.
        dims: Dimensions of the feature's rows, with None for ragged ones.
        dtype: TensorFlow's name for the feature's type.
        wanted: The input to feed.

    Raises:
        DataError: If the rows cannot be reshaped to fit.
    """
    if wanted.dtype and (wanted.dtype == "string") != (dtype == "string"):
        raise DataError(_mismatch(name, dims, dtype, wanted, "Convert the column in Spark."))
    if wanted.dims is None:
        return None
    pairs = zip(dims, wanted.dims, strict=False)
    if len(dims) == len(wanted.dims) and all(b is None or a == b for a, b in pairs):
        return None
    sizes = [size for size in dims if size is not None]
    free = wanted.dims.count(None)
    known = math.prod(size for size in wanted.dims if size is not None)
    if len(sizes) == len(dims) and len(dims) != len(wanted.dims) and free <= 1:
        count = math.prod(sizes)
        if not free and count == known:
            return wanted.dims
        if free and known and count % known == 0:
            return tuple(-1 if size is None else size for size in wanted.dims)
    raise DataError(_mismatch(name, dims, dtype, wanted, "Check feature_columns and stack."))


def _mismatch(name: str, dims: Dims, dtype: str, wanted: Input, advice: str) -> str:
    return f"The feature {name!r} is {shape_text(dims)} {dtype}, but the model takes {wanted}. {advice}"


def shape_text(dims: Dims) -> str:
    """Return a tensor's shape for messages, such as ``[batch, 28, 28]``."""
    return f"[{', '.join(['batch', *('?' if size is None else str(size) for size in dims)])}]"
