"""Descriptions of a DataFrame, of its rows on each worker, and of the files that hold them.

They travel as plain JSON between the workers, and from an agent to its trainer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from .columns import Column

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# A row's id: the number of its partition above these bits, its number within the partition below (Spark's
# monotonically_increasing_id).
ROW_BITS = 33

Json: TypeAlias = dict[str, Any]
# Consecutive rows of a shard: where they begin in the files, and how many there are.
Run: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class FrameSpec:
    """A DataFrame among the arguments of a run, as the agents need to know it.

    Attributes:
        name: The argument's name.
        columns: The DataFrame's columns, with structs split into their fields.
        positions: The position of each column in the wide schema of the stage's input.
        schema: Spark's schema, as ``StructType.jsonValue()``.
        expected_rows: The total number of rows, if Spark knows it.
    """

    name: str
    columns: tuple[Column, ...]
    positions: tuple[int, ...]
    schema: Mapping[str, Any]
    expected_rows: int | None = None


@dataclass(frozen=True)
class ColumnFacts:
    """Statistics that decide whether, and how, a column can be used.

    Attributes:
        nulls: Null rows.
        inner_nulls: Null values inside arrays.
        nans: Values that are NaN, except for those in null rows.
        lengths: For arrays and strings, the least and the greatest length at each level; -1 if there is no item.
    """

    nulls: int = 0
    inner_nulls: int = 0
    nans: int = 0
    lengths: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class FrameFacts:
    """The number of rows of a DataFrame, and the facts about its columns: of one worker, or of all."""

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
    """One level of arrays, or the bytes of strings.

    Attributes:
        items: The number of items, which are arrays or strings.
        length: The length of every item, if there is no file of offsets.
        offsets: The file of the ``items + 1`` offsets, int64; None if all items have the same length.
    """

    items: int
    length: int
    offsets: int | None


@dataclass(frozen=True)
class PlainLayout:
    """A column with one number per row: it is a column of a matrix, which it shares with others of its type.

    Attributes:
        file: The file of the matrix, ``[rows, width]``.
        width: Columns of the matrix.
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
        levels: The levels of arrays, outermost first; for strings one more with their sizes in bytes.
    """

    file: int
    values: int
    levels: tuple[LevelLayout, ...]


ColumnLayout: TypeAlias = PlainLayout | NestedLayout


@dataclass(frozen=True)
class FrameLayout:
    """The files that hold one worker's rows of a DataFrame. Files are referred to by number.

    Attributes:
        rows: Rows of the shard.
        stored: Rows in the files, including those that were handed over to other workers.
        runs: The rows of the files in the order of the DataFrame. Only the first ``rows`` of them are the shard's.
        columns: The layout of each column.
        null_file: The file of the null masks, uint8 ``[stored, columns]``; None if nothing is null.
    """

    rows: int
    stored: int
    runs: tuple[Run, ...]
    columns: tuple[ColumnLayout, ...]
    null_file: int | None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "FrameLayout":
        runs = tuple((first, count) for first, count in data["runs"])
        return cls(**{**data, "runs": runs, "columns": tuple(map(_column_layout, data["columns"]))})


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


def run_offsets(runs: Sequence[Run]) -> tuple["npt.NDArray[np.int64]", "npt.NDArray[np.int64]"]:
    """Return for each run the number of the row after its last one, and the distance from row numbers to positions.

    A row's number counts the rows in the order of the DataFrame, its position the rows in the files.
    """
    import numpy as np

    array = np.array(runs, np.int64).reshape(-1, 2)
    ends = np.cumsum(array[:, 1])
    return ends, array[:, 0] - (ends - array[:, 1])


def file_positions(runs: Sequence[Run], numbers: "npt.NDArray[np.int64]") -> "npt.NDArray[np.int64]":
    """Return the positions in the files of the rows with these numbers in the order of the DataFrame."""
    import numpy as np

    if not len(numbers):
        return numbers
    ends, shifts = run_offsets(runs)
    positions: npt.NDArray[np.int64] = numbers + shifts[np.searchsorted(ends, numbers, side="right")]
    return positions
