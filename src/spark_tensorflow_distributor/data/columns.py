"""The table of column types, and the conversion of Arrow arrays to plain NumPy arrays.

The driver reads a DataFrame's schema with :func:`columns_of`, which rejects types that have no counterpart in
TensorFlow. Spark's Python workers split each Arrow array with :func:`split_array`. See docs/data.md for the table.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ConfigurationError, DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

T = TypeVar("T")

# Maps a Spark type, as named in a schema's JSON, to ``Column.dtype``.
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
# Types with parameters, by prefix.
_FAMILIES = {"decimal": "float64", "char": "string", "varchar": "string", "string": "string"}
_DAY_TIME = re.compile(r"interval (day|hour|minute|second)")
_VECTOR = ".linalg.VectorUDT"


@dataclass(frozen=True)
class Column:
    """One column of a DataFrame, or one field of a struct column.

    Attributes:
        name: The column's name; ``outer.inner`` for a field in a struct.
        path: The parts of the name.
        spark_type: Spark's name for the type, for messages and checks.
        dtype: NumPy's name for the type of the values, or ``"string"`` or ``"binary"``.
        depth: Number of levels of arrays around the values; 0 for a plain column.
        conversion: How Spark converts the column before sending it: ``"vector"`` (to an array of float32), a type to
            cast to, or ``""`` for no conversion.
    """

    name: str
    path: tuple[str, ...]
    spark_type: str
    dtype: str
    depth: int = 0
    conversion: str = ""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Column":
        return cls(**{**data, "path": tuple(data["path"])})

    @property
    def is_bytes(self) -> bool:
        """Whether the values are byte strings: text or binary."""
        return self.dtype in ("string", "binary")

    @property
    def is_plain(self) -> bool:
        """Whether each row holds exactly one number."""
        return not self.depth and not self.is_bytes

    @property
    def is_number(self) -> bool:
        """Whether arithmetic makes sense: false for text, binary, dates and times."""
        return not self.is_bytes and not self.spark_type.startswith(("date", "timestamp", "interval"))

    @property
    def travels_as(self) -> str:
        """Spark's name for the type in which the column leaves Spark."""
        if self.conversion:
            return "array<float>" if self.conversion == "vector" else self.conversion
        return re.sub(r"\b(var)?char\(\d+\)", "string", self.spark_type)

    @property
    def storage(self) -> str:
        """NumPy's name for the type in which the values are stored; uint8 for booleans and byte strings."""
        return "uint8" if self.dtype == "bool" or self.is_bytes else self.dtype


def columns_of(schema: Mapping[str, Any], what: str) -> tuple[Column, ...]:
    """Return the columns of a schema, with structs split into their fields.

    Args:
        schema: The result of ``DataFrame.schema.jsonValue()``.
        what: The owner of the schema, for messages, such as "The DataFrame 'train_data'".

    Raises:
        DataError: If a column's type has no counterpart in TensorFlow, two columns have the same name, or there are no
            columns.
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


def _leaves(fields: Sequence[Mapping[str, Any]], parents: tuple[str, ...], what: str) -> Iterator[Column]:
    for each in fields:
        path = (*parents, each["name"])
        name = ".".join(path)
        kind = each["type"]
        if isinstance(kind, Mapping) and kind["type"] == "struct":
            yield from _leaves(kind["fields"], path, what)
            continue
        if isinstance(kind, Mapping) and kind["type"] == "udt":
            if not str(kind.get("class", "")).endswith(_VECTOR):
                raise DataError(f"{what} has a column {name!r} of type {kind.get('class')}, {_UNSUPPORTED}")
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


_UNSUPPORTED = "which has no counterpart in TensorFlow. Convert it in Spark, or drop it (DataFrame.drop)."


def _dtype_of(spark_type: str) -> str | None:
    if spark_type in _SCALARS:
        return _SCALARS[spark_type]
    if _DAY_TIME.match(spark_type):
        return "int64"
    return _FAMILIES.get(re.split(r"[ (]", spark_type)[0])


def _refusal(what: str, name: str, kind: str, depth: int) -> str:
    column = f"{what} has a column {name!r}"
    if kind == "map":
        return (
            f"{column} of type map, but tensors have no keys. Extract the keys you need (col({name!r})['key']), "
            "convert it to arrays with map_keys and map_values, or drop it (DataFrame.drop)."
        )
    if kind == "struct":
        return (
            f"{column} that is an array of structs. Convert it to one array per field, for example with "
            f"transform({name}, x -> x.field), or drop it (DataFrame.drop)."
        )
    if kind == "void":
        return f"{column} in which every row is null. Give it a type and values, or drop it (DataFrame.drop)."
    if kind.startswith("interval"):
        return (
            f"{column} of type {kind}, but months have no fixed length. Cast it to a number of months, or drop it "
            "(DataFrame.drop)."
        )
    relation = "that is an array of " if depth else "of type "
    return f"{column} {relation}{kind}, {_UNSUPPORTED}"


def quoted(name: str) -> str:
    """Quote a name for SQL, whatever characters it contains."""
    return "`" + name.replace("`", "``") + "`"


def nearest(name: str, names: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" if one of the names is similar, else an empty string."""
    names = list(names)
    lowered = {each.lower(): each for each in reversed(names)}
    close = difflib.get_close_matches(name.lower(), lowered, n=1)
    return f" (did you mean {lowered[close[0]]!r}?)" if close else ""


def by_column(argument: str, value: T | Mapping[str, T] | None, names: Sequence[str]) -> dict[str, T]:
    """Return an argument's values by column, given one value for all columns, a dict by column, or None.

    Args:
        argument: The argument's name, for the message.
        value: The argument.
        names: The columns that the call uses.

    Raises:
        ConfigurationError: If the dict names any other column.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return dict.fromkeys(names, value)
    for name in value:
        if name not in names:
            hint = nearest(name, names) or f". The call uses {', '.join(names)}"
            raise ConfigurationError(f"{argument} names {name!r}, which is not a requested column{hint}.")
    return dict(value)


@dataclass
class Values:
    """The rows of one column as NumPy arrays.

    Attributes:
        data: All values in sequence, of type ``Column.storage``: numbers, or the bytes of all strings.
        lengths: For each level of arrays, outermost first, the length of every item; for strings, one more level with
            their sizes in bytes. Empty for plain numbers.
        nulls: A mask of the null rows, bool ``[rows]``; None if there are none.
        inner_nulls: The number of null values inside arrays.
    """

    data: "npt.NDArray[Any]"
    lengths: list["npt.NDArray[np.int64]"] = field(default_factory=list)
    nulls: "npt.NDArray[np.bool_] | None" = None
    inner_nulls: int = 0


def split_array(array: "pa.Array", column: Column) -> Values:
    """Split an Arrow array of the column into NumPy arrays, without a copy if Arrow's layout allows it.

    In null rows, the values are arbitrary numbers, or empty.
    """
    nulls = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    lengths: list[npt.NDArray[np.int64]] = []
    inner_nulls = 0
    for _ in range(column.depth):
        sizes, array = _list_parts(array)
        lengths.append(sizes)
        inner_nulls += array.null_count
    if column.is_bytes:
        sizes, data = _bytes_parts(array)
        lengths.append(sizes)
    else:
        data = _numbers(array, column)
    return Values(data, lengths, nulls, inner_nulls)


def _list_parts(array: "pa.Array") -> tuple["npt.NDArray[np.int64]", "pa.Array"]:
    import numpy as np

    offsets = array.offsets.to_numpy()
    lengths = np.diff(offsets).astype(np.int64)
    if array.null_count and lengths[hidden := array.is_null().to_numpy(zero_copy_only=False)].any():
        lengths[hidden] = 0  # Arrow allows values behind a null; flatten() leaves them out
        return lengths, array.flatten()
    return lengths, array.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))


def _bytes_parts(array: "pa.Array") -> tuple["npt.NDArray[np.int64]", "npt.NDArray[np.uint8]"]:
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


def _numbers(array: "pa.Array", column: Column) -> "npt.NDArray[Any]":
    import numpy as np
    import pyarrow as pa

    expected = np.dtype(column.storage)
    if not len(array):
        return np.empty(0, expected)
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    elif not pa.types.is_primitive(array.type) or pa.types.is_decimal(array.type):
        raise DataError(f"The column {column.name!r} arrived as {array.type}, but {expected} was expected.")
    if array.type.bit_width // 8 != expected.itemsize:  # for example, a date in milliseconds
        array = array.cast(pa.from_numpy_dtype(expected))
    # Read from the buffer: to_numpy() would turn integers with nulls into floats.
    return np.frombuffer(array.buffers()[1], expected)[array.offset : array.offset + len(array)]
