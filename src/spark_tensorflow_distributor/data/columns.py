"""What a Spark column becomes: the table of types, and Arrow arrays taken apart into plain NumPy. Pure.

The driver reads a DataFrame's schema with :func:`columns_of`, and refuses what has no meaning in TensorFlow. Spark's
Python workers take each Arrow array apart with :func:`take_apart`. See docs/data.md for the table.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Spark's name of a type, as in the JSON of a schema, to the type of its values here.
_SCALARS = {
    "boolean": "bool",
    "byte": "int8",
    "short": "int16",
    "integer": "int32",
    "long": "int64",
    "float": "float32",
    "double": "float64",
    "string": "string",
    "binary": "binary",
    "date": "int32",
    "timestamp": "int64",
    "timestamp_ntz": "int64",
}
# As prefixes: these have parameters.
_FAMILIES = {"decimal": "float64", "char": "string", "varchar": "string", "string": "string"}
_DAY_TIME = re.compile(r"interval (day|hour|minute|second)")
_VECTOR = ".linalg.VectorUDT"


@dataclass(frozen=True)
class Column:
    """One column of a DataFrame, or one field of a struct column.

    Attributes:
        name: the column's name; ``outer.inner`` for a field of a struct.
        path: its parts.
        spark_type: Spark's name of the type, for messages and rules.
        dtype: NumPy's name of the values' type, or ``"string"`` or ``"binary"``.
        depth: levels of arrays around the values; 0 for a plain column.
        conversion: what Spark has to do before it hands the column out: ``"vector"`` (to an array of float32), a
            type to cast to, or ``""``.
    """

    name: str
    path: tuple[str, ...]
    spark_type: str
    dtype: str
    depth: int = 0
    conversion: str = ""

    @property
    def is_bytes(self) -> bool:
        """Whether the values are strings of bytes: text or binary."""
        return self.dtype in ("string", "binary")

    @property
    def is_number(self) -> bool:
        """Whether the values can be added up: no text, no binary, no date or time."""
        return not self.is_bytes and not self.spark_type.startswith(("date", "timestamp", "interval"))

    @property
    def travels_as(self) -> str:
        """Spark's name of the type by which the column leaves Spark."""
        if self.conversion:
            return "array<float>" if self.conversion == "vector" else self.conversion
        return re.sub(r"\b(var)?char\(\d+\)", "string", self.spark_type)

    @property
    def storage(self) -> str:
        """NumPy's name of the type by which the values are kept: a byte for a truth value, bytes for text."""
        return "uint8" if self.dtype == "bool" or self.is_bytes else self.dtype


def columns_of(schema: Mapping[str, Any], what: str) -> tuple[Column, ...]:
    """The columns of a schema, with structs taken apart into their fields.

    Args:
        schema: what ``DataFrame.schema.jsonValue()`` gives.
        what: whose schema it is, for messages: "The DataFrame 'train_data'".

    Raises:
        DataError: a column's type has no meaning in TensorFlow, or two columns have the same name.
    """
    columns = tuple(_leaves(schema["fields"], (), what))
    seen: set[str] = set()
    for column in columns:
        if column.name in seen:
            raise DataError(f"{what} has two columns named {column.name!r}. Rename one of them (withColumnRenamed).")
        seen.add(column.name)
    if not columns:
        raise DataError(f"{what} has no columns.")
    return columns


def _leaves(fields: Sequence[Mapping[str, Any]], above: tuple[str, ...], what: str) -> Iterator[Column]:
    for each in fields:
        path = (*above, each["name"])
        name = ".".join(path)
        kind = each["type"]
        if isinstance(kind, Mapping) and kind["type"] == "struct":
            yield from _leaves(kind["fields"], path, what)
            continue
        if isinstance(kind, Mapping) and kind["type"] == "udt":
            if not str(kind.get("class", "")).endswith(_VECTOR):
                raise DataError(f"{what} has the column {name!r} of the type {kind.get('class')}, {_NO_MEANING}")
            yield Column(name, path, "vector", "float32", 1, "vector")
            continue
        depth, inner = 0, kind
        while isinstance(inner, Mapping) and inner["type"] == "array":
            depth, inner = depth + 1, inner["elementType"]
        if isinstance(inner, Mapping):
            raise DataError(_refusal(what, name, inner["type"], depth))
        dtype = _dtype_of(inner)
        if dtype is None:
            raise DataError(_refusal(what, name, inner, depth))
        spark_type = "array<" * depth + inner + ">" * depth
        conversion = "array<" * depth + "double" + ">" * depth if inner.startswith("decimal") else ""
        yield Column(name, path, spark_type, dtype, depth, conversion)


_NO_MEANING = "which has no meaning in TensorFlow. Convert it in Spark, or drop it (DataFrame.drop)."


def _dtype_of(spark_type: str) -> str | None:
    if spark_type in _SCALARS:
        return _SCALARS[spark_type]
    if _DAY_TIME.match(spark_type):
        return "int64"
    return _FAMILIES.get(re.split(r"[ (]", spark_type)[0])


def _refusal(what: str, name: str, kind: str, depth: int) -> str:
    column = f"{what} has the column {name!r}"
    if kind == "map":
        return (
            f"{column} of type map: a tensor has no keys. Take out the keys that matter "
            f"(col({name!r})['key']), or map_keys and map_values as arrays."
        )
    if kind == "struct":
        return (
            f"{column}, an array of structs. Make it one array a field, for example with "
            f"transform({name}, x -> x.field)."
        )
    if kind == "void":
        return f"{column}, in which every row is null. Give it a type and values, or drop it (DataFrame.drop)."
    if kind.startswith("interval"):
        return f"{column} of type {kind}: months have no fixed length. Cast it to a number of months, or drop it."
    where = "an array of " if depth else "of type "
    return f"{column}, {where}{kind}, {_NO_MEANING}"


def nearest(name: str, names: Iterable[str]) -> str:
    """ "; did you mean 'x'?", where one of the names is near, else nothing."""
    names = list(names)
    lowered = {each.lower(): each for each in reversed(names)}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    return f"; did you mean {lowered[close[0]]!r}?" if close else ""


@dataclass
class Values:
    """The rows of one column, taken apart.

    Attributes:
        data: all values in a row, of the type ``Column.storage``: numbers, or the bytes of all strings.
        lengths: for each level of arrays, outermost first, how many parts each item has; for strings one level more,
            the bytes of each. Empty for a plain number.
        nulls: which rows are null, or None for no row.
        inner_nulls: how many values inside of arrays are null.
    """

    data: "npt.NDArray[Any]"
    lengths: list["npt.NDArray[np.int64]"] = field(default_factory=list)
    nulls: "npt.NDArray[np.bool_] | None" = None
    inner_nulls: int = 0


def take_apart(array: Any, column: Column) -> Values:
    """Take a ``pyarrow.Array`` of the column apart, without a copy where Arrow's layout allows it.

    Values where a row is null are arbitrary numbers, or empty.
    """
    values = Values(data=None)  # type: ignore[arg-type]
    if array.null_count:
        values.nulls = array.is_null().to_numpy(zero_copy_only=False)
    for level in range(column.depth):
        if level:
            values.inner_nulls += array.null_count
        lengths, array = _list_parts(array)
        values.lengths.append(lengths)
    if column.depth:
        values.inner_nulls += array.null_count
    if column.is_bytes:
        lengths, values.data = _bytes_parts(array)
        values.lengths.append(lengths)
    else:
        values.data = _numbers(array, column)
    return values


def _list_parts(array: Any) -> tuple["npt.NDArray[np.int64]", Any]:
    import numpy as np

    offsets = array.offsets.to_numpy()
    lengths = np.diff(offsets).astype(np.int64)
    if array.null_count and lengths[hidden := array.is_null().to_numpy(zero_copy_only=False)].any():
        lengths[hidden] = 0  # Arrow allows values under a null; flatten() leaves them out
        return lengths, array.flatten()
    return lengths, array.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))


def _bytes_parts(array: Any) -> tuple["npt.NDArray[np.int64]", "npt.NDArray[np.uint8]"]:
    import numpy as np
    import pyarrow as pa

    large = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    if not large and not (pa.types.is_string(array.type) or pa.types.is_binary(array.type)):
        array, large = array.cast(pa.large_binary()), True
    _, offset_buffer, data_buffer = array.buffers()
    if not len(array) or offset_buffer is None:
        return np.zeros(len(array), np.int64), np.empty(0, np.uint8)
    offsets = np.frombuffer(offset_buffer, np.int64 if large else np.int32)[
        array.offset : array.offset + len(array) + 1
    ]
    data = np.empty(0, np.uint8) if data_buffer is None else np.frombuffer(data_buffer, np.uint8)
    return np.diff(offsets).astype(np.int64), data[offsets[0] : offsets[-1]]


def _numbers(array: Any, column: Column) -> "npt.NDArray[Any]":
    import numpy as np
    import pyarrow as pa

    wanted = np.dtype(column.storage)
    if not len(array):
        return np.empty(0, wanted)
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    elif not pa.types.is_primitive(array.type) or pa.types.is_decimal(array.type):
        raise DataError(f"The column {column.name!r} came as {array.type}, where {wanted} was expected.")
    width = array.type.bit_width // 8
    if width != wanted.itemsize:  # a date in milliseconds, say
        array = array.cast(pa.from_numpy_dtype(wanted))
    # By the buffer itself: to_numpy would turn integers with nulls into floats.
    return np.frombuffer(array.buffers()[1], wanted)[array.offset : array.offset + len(array)]
