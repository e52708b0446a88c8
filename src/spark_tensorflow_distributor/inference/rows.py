"""Arrow arrays to NumPy and back. Pure, and without a loop over rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..data.columns import Column, Values, columns_of, split_array
from ..errors import DataError
from .features import Dims

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass
class Rows:
    """One feature's rows.

    Attributes:
        name: the feature.
        data: the values: ``[rows, *dims]``; of a ragged feature all in a row.
        lengths: of a ragged feature, how many parts each item has, for each level, outermost first; else empty.
    """

    name: str
    data: "npt.NDArray[Any]"
    lengths: Sequence["npt.NDArray[np.int64]"] = ()

    @property
    def dims(self) -> Dims:
        """Sizes of a row; None where they differ."""
        return (None,) * len(self.lengths) if self.lengths else tuple(self.data.shape[1:])

    @property
    def dtype(self) -> str:
        """TensorFlow's name of the type."""
        return "string" if self.data.dtype.hasobject else str(self.data.dtype)

    def cut(self, start: int, stop: int) -> "Rows":
        """Some of the rows, without a copy."""
        if not self.lengths:
            return Rows(self.name, self.data[start:stop])
        lengths = []
        for level in self.lengths:
            lengths.append(level[start:stop])
            start, stop = int(level[:start].sum()), int(level[:stop].sum())
        return Rows(self.name, self.data[start:stop], lengths)


def rows_of(array: Any, names: Sequence[str]) -> Rows:
    """A ``pyarrow.Array`` as a tensor's rows.

    Args:
        array: what Spark handed to the function.
        names: its name; several where Spark has put that many columns into one array, in this order.

    Raises:
        DataError: there are nulls in it, or its type has no meaning in TensorFlow.
    """
    column = column_of(array, names[0])
    if column.conversion:
        array = array.cast(_doubles(column.depth))
    values = split_array(array, column)
    if values.nulls is not None or values.inner_nulls:
        raise DataError(_null_text(array, column, values, names))
    data = _objects(values) if column.is_bytes else values.data
    data = data.view("bool") if column.dtype == "bool" else data
    lengths = values.lengths[: column.depth]
    if all((level == level[0]).all() for level in lengths if len(level)):
        sizes = [int(level[0]) if len(level) else 0 for level in lengths]
        return Rows(names[0], data.reshape(len(array), *sizes))
    return Rows(names[0], data, lengths)


def column_of(array: Any, name: str) -> Column:
    """What an Arrow array's type means, by the table of Spark's types."""
    import pyarrow as pa
    from pyspark.sql.pandas.types import from_arrow_type

    kind = array.type
    if pa.types.is_struct(kind):
        inner = {kind.field(i).name for i in range(kind.num_fields)}
        is_vector = {"type", "size", "indices", "values"} <= inner
        raise DataError(
            f"The argument {name!r} is a vector. Pass vector_to_array({name}, 'float32')."
            if is_vector
            else f"The argument {name!r} is a struct of {sorted(inner)}. Pass its fields as arguments of their own."
        )
    fields = [{"name": name, "type": from_arrow_type(kind).jsonValue()}]
    return columns_of({"fields": fields}, "The call of the prediction function")[0]


def _doubles(depth: int) -> Any:
    import pyarrow as pa

    kind = pa.float64()
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind


def _null_text(array: Any, column: Column, values: Values, names: Sequence[str]) -> str:
    where, count = f"The feature column {column.name!r} has", array.null_count
    if len(names) > 1 and values.inner_nulls:
        import numpy as np

        # Spark has put the columns side by side: an element's place tells its column.
        places = np.flatnonzero(array.values.is_null().to_numpy(zero_copy_only=False)) % len(names)
        found = {names[place]: int((places == place).sum()) for place in np.unique(places)}
        name, count = next(iter(found.items()))
        others = f" (and {', '.join(list(found)[1:6])} too)" if len(found) > 1 else ""
        where = f"The feature column {name!r}{others} has"
    elif values.inner_nulls:
        where, count = f"The arrays of the feature column {column.name!r} have", values.inner_nulls
    return (
        f"{where} {count} null{'s' * (count != 1)} in a batch of {len(array)} rows, and a tensor has none. Give "
        "fill_value, or fill or drop them in Spark first (DataFrame.fillna, dropna, coalesce)."
    )


def _objects(values: Values) -> "npt.NDArray[Any]":
    """Strings of bytes as NumPy objects, which TensorFlow takes."""
    import numpy as np
    import pyarrow as pa

    lengths = values.lengths[-1]
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(values.data)]
    array = pa.Array.from_buffers(pa.large_binary(), len(lengths), buffers)
    return array.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def stacked(parts: Sequence[Rows]) -> Rows:
    """All features side by side, ``[rows, k]`` float32.

    Raises:
        DataError: one has arrays of different lengths.
    """
    import numpy as np

    for part in parts:
        if part.lengths or part.data.ndim > 2 or part.data.dtype.hasobject:
            raise DataError(
                f"stack=True puts numbers and flat arrays of one length side by side; {part.name!r} is of the type "
                f"{part.dtype} with rows {list(part.dims)}. Leave it out, or use stack=False."
            )
    if len(parts) == 1 and parts[0].data.ndim == 2:
        return Rows("features", np.asarray(parts[0].data, np.float32))
    widths = [1 if part.data.ndim == 1 else part.data.shape[1] for part in parts]
    whole = np.empty((len(parts[0].data), sum(widths)), np.float32)
    start = 0
    for part, width in zip(parts, widths, strict=True):
        whole[:, start : start + width] = part.data.reshape(-1, width)
        start += width
    return Rows("features", whole)


def to_arrow(pieces: Sequence[Rows], kind: Any) -> Any:
    """A model's output as a ``pyarrow.Array`` of the type that Spark waits for.

    Args:
        pieces: the output of each batch.
        kind: a ``pyarrow.DataType``.

    Raises:
        DataError: the output has more or fewer levels of arrays than the type.
    """
    import pyarrow as pa

    depth, inner = 0, kind
    while pa.types.is_list(inner) or pa.types.is_large_list(inner):
        depth, inner = depth + 1, inner.value_type
    arrays = [_nested(piece, depth, kind, inner) for piece in pieces]
    return arrays[0] if len(arrays) == 1 else pa.concat_arrays(arrays)


def _nested(rows: Rows, depth: int, kind: Any, inner: Any) -> Any:
    import numpy as np
    import pyarrow as pa

    data, dims = rows.data, rows.dims
    if depth == 0 and dims == (1,):
        data, dims = data.reshape(-1), ()
    if len(dims) != depth:
        raise DataError(
            f"The model's output {rows.name!r} is {rows.dtype} with {len(rows.dims)} dimensions beside the batch "
            f"({list(rows.dims)}), and the type of the column is {kind}. Give the one that fits as output_type."
        )
    flat = np.ascontiguousarray(data).reshape(-1)
    if flat.dtype.hasobject:
        array = pa.array(flat, pa.binary()).cast(inner)
    else:
        array = pa.array(flat).cast(inner)
    kinds = [kind]
    while len(kinds) < depth:
        kinds.append(kinds[-1].value_type)
    levels = list(rows.lengths) or [np.full(int(np.prod(data.shape[: i + 1])), dims[i]) for i in range(depth)]
    for level, list_kind in zip(reversed(levels), reversed(kinds), strict=False):
        wide = pa.types.is_large_list(list_kind)
        offsets = np.zeros(len(level) + 1, np.int64 if wide else np.int32)
        np.cumsum(level, out=offsets[1:])
        builder = pa.LargeListArray if wide else pa.ListArray
        array = builder.from_arrays(pa.array(offsets), array, type=list_kind)
    return array
