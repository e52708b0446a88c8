"""Which columns a model gets, and in which tensors. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.columns import Column, columns_of, nearest
from ..errors import ConfigurationError, DataError

Dims = tuple[int | None, ...]


@dataclass(frozen=True)
class Input:
    """One input of a model.

    Attributes:
        name: its name, or ``""`` where it has none.
        dims: its shape without the batch; None for a size that is free. None in place of all: anything fits.
        dtype: TensorFlow's name of the type; ``""`` where any is taken.
    """

    name: str
    dims: Dims | None
    dtype: str = ""

    def __str__(self) -> str:
        shown = "any shape" if self.dims is None else shape_text(self.dims)
        return f"{self.name!r} {shown} {self.dtype}".rstrip()


@dataclass(frozen=True)
class Inputs:
    """What a model wants.

    Attributes:
        form: ``"one"`` tensor, a ``"list"``, a ``"dict"`` by name, or ``"any"``: the model does not say.
        inputs: the tensors; empty for ``"any"``.
    """

    form: str
    inputs: tuple[Input, ...] = ()

    def __str__(self) -> str:
        return ", ".join(map(str, self.inputs)) or "inputs that it does not name"


def feature_names(features: str | Sequence[str] | None, what: str = "feature_columns") -> tuple[str, ...]:
    """The names in an argument that is a name or a list of names.

    Raises:
        ConfigurationError: it is neither, is empty, or has a name twice.
    """
    names = (features,) if isinstance(features, str) else tuple(features or ())
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigurationError(f"{what} is {features!r}; it must be a column's name or a list of names.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(f"{what} names {twice[0]!r} more than once. Remove the repetition.")
    return names


def choose(schema: Mapping[str, Any], names: Sequence[str]) -> list[Column]:
    """The columns of these names; those of the DataFrame that are not named may have any type.

    Args:
        schema: what ``DataFrame.schema.jsonValue()`` gives.
        names: columns, or ``outer.inner`` for a field of a struct.

    Raises:
        DataError: there is no such column, or its type has no meaning in TensorFlow.
    """
    return [_choose_one(schema["fields"], name) for name in names]


def _choose_one(fields: Sequence[Mapping[str, Any]], name: str) -> Column:
    owners = [f for f in fields if name == f["name"] or name.startswith(f["name"] + ".")]
    for column in columns_of({"fields": owners}, "The DataFrame") if owners else ():
        if column.name == name:
            return column
    known = [f["name"] for f in fields]
    for owner in owners:
        inner = columns_of({"fields": [owner]}, "The DataFrame")
        if len(owners) == 1 and owner["name"] == name:
            raise DataError(
                f"The feature column {name!r} is a struct. Name its fields: {', '.join(c.name for c in inner)}."
            )
        known += [column.name for column in inner]
    raise DataError(
        f"The DataFrame has no column {name!r}{nearest(name, known)}. Its columns: {_some(known)}. Correct "
        "feature_columns."
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def check_stackable(columns: Sequence[Column]) -> None:
    """Refuse columns that cannot be put side by side in one float32 tensor.

    Raises:
        DataError: one of them is no number.
    """
    for column in columns:
        if not column.is_number or column.depth > 1:
            raise DataError(
                f"stack=True puts numbers and flat arrays side by side; the column {column.name!r} is of the type "
                f"{column.spark_type}. Leave it out of feature_columns, convert it in Spark, or use stack=False."
            )


def bind(names: Sequence[str], is_one: bool, inputs: Inputs) -> list[int]:
    """For each input of the model, which feature it gets.

    Features go to inputs of the same name. Where none of the names agrees, they go in order, but never to a model
    whose inputs are a dict.

    Args:
        names: the features.
        is_one: they are one tensor, not a collection of tensors.
        inputs: what the model wants; not of the form ``"any"``.

    Raises:
        DataError: they do not fit.
    """
    wanted = [each.name for each in inputs.inputs]
    given = f"feature_columns gives {len(names)} ({_some(names)})"
    if len(wanted) == len(names) == 1:
        return [0]
    if len(wanted) == 1:
        raise DataError(
            f"The model has one input, {inputs}, and {given}. Pass stack=True to put them side by side in one "
            "tensor [batch, k], or name one column."
        )
    if is_one:
        raise DataError(
            f"The model has {len(wanted)} inputs ({inputs}), and feature_columns gives one tensor. Give a list of "
            "columns, one for each input, without stack=True."
        )
    if set(wanted) == set(names):
        return [list(names).index(name) for name in wanted]
    if len(wanted) == len(names) and inputs.form != "dict" and not set(wanted) & set(names):
        return list(range(len(names)))
    missing = [name for name in wanted if name not in names]
    unknown = [name for name in names if name not in wanted]
    lacks = f" The input {missing[0]!r} gets no column{nearest(missing[0], unknown)}." if missing else ""
    extra = f" The column {unknown[0]!r} is no input{nearest(unknown[0], missing)}." if unknown else ""
    raise DataError(
        f"The model has {len(wanted)} inputs ({inputs}), and {given}.{lacks}{extra} Give each input the column of its "
        "name (DataFrame.withColumnRenamed, or an alias)."
    )


def fitted(name: str, dims: Dims, dtype: str, wanted: Input) -> Dims | None:
    """The sizes to reshape a feature's rows to (-1: what is left), so that they fit an input; None where they do.

    Args:
        name: the feature, for messages.
        dims: sizes of its rows; None where it is ragged.
        dtype: TensorFlow's name of its type.
        wanted: the input.

    Raises:
        DataError: they cannot fit.
    """
    if wanted.dtype and (wanted.dtype == "string") != (dtype == "string"):
        raise DataError(_misfit(name, dims, dtype, wanted, "Convert the column in Spark."))
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
    raise DataError(_misfit(name, dims, dtype, wanted, "Check feature_columns and stack."))


def _misfit(name: str, dims: Dims, dtype: str, wanted: Input, advice: str) -> str:
    return f"The feature {name!r} is {shape_text(dims)} {dtype}, and the model takes {wanted}. {advice}"


def shape_text(dims: Dims) -> str:
    """A tensor's shape for messages: ``[batch, 28, 28]``."""
    return f"[{', '.join(['batch', *('?' if size is None else str(size) for size in dims)])}]"
