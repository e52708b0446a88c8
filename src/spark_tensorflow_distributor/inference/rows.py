"""Converts Arrow arrays to NumPy arrays and back. Pure, and without Python loops over rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..data.checks import ARRAY_NULLS_ADVICE, array_nulls_text
from ..data.columns import Column, Values, columns_of, split_array
from ..errors import DataError
from .features import Dims

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa


@dataclass
class Rows:
    """The rows of one feature or output.

    Attributes:
        name: Name of the feature or output.
        data: The values, ``[rows, *dims]``; if they are ragged, all values in sequence, 1-D.
        lengths: If the values are ragged, the length of every item at each level of arrays, outermost first; otherwise
            empty.
    """

    name: str
    data: "npt.NDArray[Any]"
    lengths: Sequence["npt.NDArray[np.int64]"] = ()

    @property
    def dims(self) -> Dims:
        """Dimensions of a row, with None for a size that varies."""
        return (None,) * len(self.lengths) if self.lengths else tuple(self.data.shape[1:])

    @property
    def dtype(self) -> str:
        """TensorFlow's name for the type of the values."""
        return "string" if self.data.dtype.hasobject else str(self.data.dtype)

    def slice(self, start: int, stop: int) -> "Rows":
        """Return a range of the rows, without a copy."""
        if not self.lengths:
            return Rows(self.name, self.data[start:stop])
        lengths = []
        for level in self.lengths:
            lengths.append(level[start:stop])
            start, stop = int(level[:start].sum()), int(level[:stop].sum())
        return Rows(self.name, self.data[start:stop], lengths)


def rows_from_arrow(
    array: "pa.Array", names: Sequence[str], *, subject: str = "", has_fill_value: bool = False
) -> Rows:
    """Convert an Arrow array.

    Args:
        array: The array that Spark passed to the function.
        names: The array's name, or the names of the columns that Spark has combined into one array, in this order.
        subject: How errors refer to a column that is not a feature, such as ``"The weight column 'w'"``.
        has_fill_value: Whether the user can pass ``fill_value``, for errors.

    Raises:
        DataError: If the array contains nulls, or TensorFlow has no equivalent for its type.
    """
    column = column_from_arrow(array, names[0])
    if column.conversion:
        array = array.cast(_float64_list(column.depth))
    values = split_array(array, column)
    if values.nulls is not None or values.inner_nulls:
        raise DataError(_null_text(array, column, values, names, subject, has_fill_value=has_fill_value))
    data = _byte_strings(values) if column.is_bytes else values.data
    data = data.view("bool") if column.dtype == "bool" else data
    lengths = values.lengths[: column.depth]
    if all((level == level[0]).all() for level in lengths if len(level)):
        sizes = [int(level[0]) if len(level) else 0 for level in lengths]
        return Rows(names[0], data.reshape(len(array), *sizes))
    return Rows(names[0], data, lengths)


def column_from_arrow(array: "pa.Array", name: str) -> Column:
    """Return the description of an Arrow array's column, as derived from a DataFrame's schema.

    Raises:
        DataError: If the array contains structs, or TensorFlow has no equivalent for its type.
    """
    import pyarrow as pa
    from pyspark.sql.pandas.types import from_arrow_type

    kind = array.type
    if pa.types.is_struct(kind):
        inner = {kind.field(i).name for i in range(kind.num_fields)}
        if {"type", "size", "indices", "values"} <= inner:
            raise DataError(f"The argument {name!r} is a vector. Pass vector_to_array({name}, 'float32').")
        raise DataError(f"The argument {name!r} is a struct of {sorted(inner)}. Pass its fields as separate arguments.")
    fields = [{"name": name, "type": from_arrow_type(kind).jsonValue()}]
    return columns_of({"fields": fields}, "The call of the prediction function")[0]


def _float64_list(depth: int) -> "pa.DataType":
    import pyarrow as pa

    kind = pa.float64()
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind


def _null_text(
    array: "pa.Array", column: Column, values: Values, names: Sequence[str], subject: str, *, has_fill_value: bool
) -> str:
    subject, count = subject or f"The feature column {column.name!r}", array.null_count
    advice = "Pass fill_value, or fill or drop" if has_fill_value else "Fill or drop"
    advice += " the nulls in Spark first (DataFrame.fillna, dropna, coalesce)."
    if len(names) > 1:
        import numpy as np

        # Spark has put the columns side by side, so an element's position determines its column.
        columns = np.flatnonzero(array.values.is_null().to_numpy(zero_copy_only=False)) % len(names)
        counts = {names[index]: int((columns == index).sum()) for index in np.unique(columns)}
        name, count = next(iter(counts.items()))
        others = f" (and {', '.join(list(counts)[1:6])} too)" if len(counts) > 1 else ""
        subject = f"The feature column {name!r}{others}"
    elif column.depth:
        found = array_nulls_text(array.null_count, len(array), values.inner_nulls)
        # fill_value replaces only values of flat arrays.
        can_fill = has_fill_value and column.depth == 1 and not array.null_count
        advice = f"Pass fill_value. Or: {ARRAY_NULLS_ADVICE}" if can_fill else ARRAY_NULLS_ADVICE
        return f"{subject}: {found} in a batch of {len(array)} rows, but tensors cannot hold nulls. {advice}"
    return (
        f"{subject} has {count} null{'s' * (count != 1)} in a batch of {len(array)} rows, but tensors cannot hold "
        f"nulls. {advice}"
    )


def _byte_strings(values: Values) -> "npt.NDArray[Any]":
    """Return byte strings as an array of Python objects, the form that TensorFlow accepts."""
    import numpy as np
    import pyarrow as pa

    lengths = values.lengths[-1]
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(values.data)]
    array = pa.Array.from_buffers(pa.large_binary(), len(lengths), buffers)
    return array.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def stack(parts: Sequence[Rows]) -> Rows:
    """Put features side by side in one ``[rows, k]`` array of float32.

    Raises:
        DataError: If a feature is not numeric, has arrays of different lengths, or has nested arrays.
    """
    import numpy as np

    for part in parts:
        if part.lengths or part.data.ndim > 2 or part.data.dtype.hasobject:
            raise DataError(
                f"stack=True puts numbers and flat arrays of one length side by side, but {part.name!r} is of type "
                f"{part.dtype} with rows of shape {list(part.dims)}. Leave it out, or use stack=False."
            )
    if len(parts) == 1 and parts[0].data.ndim == 2:
        return Rows("features", np.asarray(parts[0].data, np.float32))
    widths = [1 if part.data.ndim == 1 else part.data.shape[1] for part in parts]
    result = np.empty((len(parts[0].data), sum(widths)), np.float32)
    start = 0
    for part, width in zip(parts, widths, strict=True):
        result[:, start : start + width] = part.data.reshape(-1, width)
        start += width
    return Rows("features", result)


def rows_to_arrow(pieces: Sequence[Rows], kind: "pa.DataType") -> "pa.Array":
    """Convert one output of the model to an Arrow array of the type that Spark expects.

    Args:
        pieces: The output for each batch.
        kind: The Arrow type.

    Raises:
        DataError: If the output and the type differ in their levels of arrays.
    """
    import pyarrow as pa

    depth, inner = 0, kind
    while pa.types.is_list(inner) or pa.types.is_large_list(inner):
        depth, inner = depth + 1, inner.value_type
    arrays = [_nested_array(piece, depth, kind, inner) for piece in pieces]
    return arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)


def _nested_array(rows: Rows, depth: int, kind: "pa.DataType", inner: "pa.DataType") -> "pa.Array":
    import numpy as np
    import pyarrow as pa

    data, dims = rows.data, rows.dims
    if depth == 0 and dims == (1,):
        data, dims = data.reshape(-1), ()
    if len(dims) != depth:
        raise DataError(
            f"The model's output {rows.name!r} is {rows.dtype} with {len(rows.dims)} dimensions besides the batch "
            f"({list(rows.dims)}), but the type of the column is {kind}. Pass a matching output_type."
        )
    flat = np.ascontiguousarray(data).reshape(-1)
    array = pa.array(flat, pa.binary() if flat.dtype.hasobject else None).cast(inner)
    kinds = [kind]
    while len(kinds) < depth:
        kinds.append(kinds[-1].value_type)
    levels = list(rows.lengths) or [np.full(int(np.prod(data.shape[: i + 1])), dims[i]) for i in range(depth)]
    for level, list_kind in zip(reversed(levels), reversed(kinds), strict=False):
        is_large = pa.types.is_large_list(list_kind)
        offsets = np.zeros(len(level) + 1, np.int64 if is_large else np.int32)
        np.cumsum(level, out=offsets[1:])
        array_class = pa.LargeListArray if is_large else pa.ListArray
        array = array_class.from_arrays(pa.array(offsets), array, type=list_kind)
    return array
