"""Descriptions of a DataFrame, of its rows on each worker, and of the files that hold them.

These descriptions travel as plain JSON between the workers, and from an agent to its trainer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from .columns import Column

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# A row's id has the row's number within its partition in these low bits, and the partition's number above them (Spark's
# monotonically_increasing_id).
ROW_BITS = 33

Json: TypeAlias = dict[str, Any]
# Consecutive rows of a shard: the position of the first one in the files, and the number of rows.
RowRange: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class FrameSpec:
    """What the agents need to know about a DataFrame among the arguments of a run.

    Attributes:
        name: The argument's name.
        columns: The DataFrame's columns, with structs split into their fields.
        positions: The position of each column in the wide schema of the stage's input.
        schema: Spark's schema, as ``StructType.jsonValue()``.
        expected_rows: The total number of rows if Spark knows it; otherwise None.
    """

    name: str
    columns: tuple[Column, ...]
    positions: tuple[int, ...]
    schema: Mapping[str, Any]
    expected_rows: int | None = None


@dataclass(frozen=True)
class ColumnFacts:
    """Statistics that decide whether and how a column can be used.

    Attributes:
        nulls: Number of null rows.
        inner_nulls: Number of null values inside arrays.
        nans: Number of values that are NaN, not counting null rows.
        lengths: For arrays and strings, the least and the greatest length at each level; -1 if there are no items.
    """

    nulls: int = 0
    inner_nulls: int = 0
    nans: int = 0
    lengths: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class FrameFacts:
    """The number of a DataFrame's rows and the facts about its columns, on one worker or on all of them."""

    rows: int
    columns: tuple[ColumnFacts, ...]

    def to_json(self) -> Json:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "FrameFacts":
        columns = tuple(
            ColumnFacts(**{**each, "lengths": tuple((least, most) for least, most in each["lengths"])})
            for each in data["columns"]
        )
        return cls(data["rows"], columns)


@dataclass(frozen=True)
class LevelLayout:
    """One level of arrays, or the level of strings, whose items consist of bytes.

    Attributes:
        items: The number of items, which are arrays or strings.
        length: The length of every item, if there is no file of offsets.
        offsets: The file with the ``items + 1`` offsets, int64; None if all items have the same length.
    """

    items: int
    length: int
    offsets: int | None


@dataclass(frozen=True)
class PlainLayout:
    """A column with one number per row, stored in a matrix that all such columns of a type share.

    Attributes:
        file: The file of the matrix, ``[rows, width]``.
        width: Number of columns in the matrix.
        index: The column's index in the matrix.
    """

    file: int
    width: int
    index: int


@dataclass(frozen=True)
class NestedLayout:
    """A column of arrays or strings.

    Attributes:
        file: The file of the values, or of the bytes of all strings.
        values: The number of values in the file.
        levels: The levels of arrays, outermost first; for strings, one more level with their sizes in bytes.
    """

    file: int
    values: int
    levels: tuple[LevelLayout, ...]


ColumnLayout: TypeAlias = PlainLayout | NestedLayout


@dataclass(frozen=True)
class FrameLayout:
    """The files that hold one worker's rows of a DataFrame. Files are referred to by number.

    Attributes:
        rows: Number of rows in the shard.
        stored: Number of rows in the files, including rows that were handed over to other workers.
        ranges: The rows in the files, in the DataFrame's order. Only the first ``rows`` of them belong to the shard.
        columns: The layout of each column.
        null_file: The file with the null masks, uint8 ``[stored, columns]``; None if nothing is null.
    """

    rows: int
    stored: int
    ranges: tuple[RowRange, ...]
    columns: tuple[ColumnLayout, ...]
    null_file: int | None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "FrameLayout":
        ranges = tuple((first, count) for first, count in data["ranges"])
        return cls(**{**data, "ranges": ranges, "columns": tuple(map(_column_layout, data["columns"]))})


def _column_layout(data: Mapping[str, Any]) -> ColumnLayout:
    if "levels" not in data:
        return PlainLayout(**data)
    return NestedLayout(**{**data, "levels": tuple(LevelLayout(**level) for level in data["levels"])})


@dataclass(frozen=True)
class ShardLayout:
    """Everything a trainer needs to know about its shard of a DataFrame.

    Attributes:
        name: The argument's name.
        schema: Spark's schema, as ``StructType.jsonValue()``.
        columns: The DataFrame's columns.
        facts: The facts about the rows of all workers.
        frame: The layout of this worker's files.
        num_files: The number of these files.
    """

    name: str
    schema: Mapping[str, Any]
    columns: tuple[Column, ...]
    facts: FrameFacts
    frame: FrameLayout
    num_files: int

    def to_json(self) -> Json:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "ShardLayout":
        return cls(
            name=data["name"],
            schema=data["schema"],
            columns=tuple(map(Column.from_json, data["columns"])),
            facts=FrameFacts.from_json(data["facts"]),
            frame=FrameLayout.from_json(data["frame"]),
            num_files=data["num_files"],
        )


def range_offsets(ranges: Sequence[RowRange]) -> tuple["npt.NDArray[np.int64]", "npt.NDArray[np.int64]"]:
    """Return, for each range, the number of the row after its last one, and the distance from row numbers to positions.

    Row numbers count rows in the DataFrame's order; positions count rows in the files.
    """
    import numpy as np

    array = np.array(ranges, np.int64).reshape(-1, 2)
    ends = np.cumsum(array[:, 1])
    return ends, array[:, 0] - (ends - array[:, 1])


def file_positions(ranges: Sequence[RowRange], numbers: "npt.NDArray[np.int64]") -> "npt.NDArray[np.int64]":
    """Return the positions in the files of the rows with these numbers in the DataFrame's order."""
    import numpy as np

    if not len(numbers):
        return numbers
    ends, shifts = range_offsets(ranges)
    positions: npt.NDArray[np.int64] = numbers + shifts[np.searchsorted(ends, numbers, side="right")]
    return positions
