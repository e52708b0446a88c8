"""A worker's rows of one DataFrame, in files that the trainer maps into its memory.

Plain numbers are kept row by row: all columns of a type in one file, so that a shuffled batch reads a row's numbers
from one place. Arrays and texts are kept as their values, one after the other, and offsets; where all are of the same
length there are no offsets, and the file is a matrix again. The files have no names: nothing of them can stay behind.
"""

import io
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .columns import Column, Values
from .layout import ROW_BITS

Array = npt.NDArray[Any]
_PIECE = 1 << 18  # offsets written at a time where they come late
# Ids of rows that another worker gave: behind all of the own.
_GIVEN = 1 << 62


class FrameSpool:
    """Takes rows, batch by batch.

    Args:
        columns: of the frame.
        directory: where the files are.

    Attributes:
        rows: how many there are.
        bytes: what has been written.
    """

    def __init__(self, columns: Sequence[Column], directory: str) -> None:
        self._columns = columns
        self._directory = directory
        self.rows = 0
        self.bytes = 0
        self._files: list[BinaryIO] = []
        groups: dict[str, list[int]] = {}
        for number, column in enumerate(columns):
            if not column.depth and not column.is_bytes:
                groups.setdefault(column.storage, []).append(number)
        self._groups = [(np.dtype(name), members, self._new_file()) for name, members in groups.items()]
        self._long = {
            number: _LongColumn(column, self._new_file, self._write)
            for number, column in enumerate(columns)
            if column.depth or column.is_bytes
        }
        self._null_file: int | None = None
        self._facts: list[dict[str, Any]] = [{"nulls": 0, "inner_nulls": 0, "nans": 0} for _ in columns]
        self._runs = _Runs()
        self._kept: int | None = None

    def add(self, values: Sequence[Values], ids: Array) -> None:
        """Append rows.

        Args:
            values: one for each column, all of the same number of rows.
            ids: of the rows, int64 [rows].

        Raises:
            OSError: the disk is full.
        """
        rows = len(ids)
        if not rows:
            return
        for dtype, members, file in self._groups:
            if len(members) == 1:
                matrix = np.ascontiguousarray(values[members[0]].data)
            else:
                matrix = np.empty((rows, len(members)), dtype)
                for place, number in enumerate(members):
                    matrix[:, place] = values[number].data
            self._write(file, matrix)
        for number, column in self._long.items():
            column.add(values[number])
        self._note(values, rows)
        self._runs.add(ids, self.rows)
        self.rows += rows

    def _note(self, values: Sequence[Values], rows: int) -> None:
        """Keep what is null, and count what may be refused later."""
        for facts, column, value in zip(self._facts, self._columns, values, strict=True):
            facts["inner_nulls"] += value.inner_nulls
            if value.nulls is not None:
                facts["nulls"] += int(value.nulls.sum())
            if column.storage.startswith("float") and np.isnan(value.data.sum()):
                valid = value.data if value.nulls is None or column.depth else value.data[~value.nulls]
                facts["nans"] += int(np.isnan(valid).sum())
        if all(value.nulls is None for value in values):
            return
        if self._null_file is None:
            self._null_file = self._new_file()
        mask = np.zeros((rows, len(values)), np.uint8)
        for number, value in enumerate(values):
            if value.nulls is not None:
                mask[:, number] = value.nulls
        # Rows before and after, where nothing is null, are holes of the file, which read as zeros.
        os.lseek(self._files[self._null_file].fileno(), self.rows * len(values), os.SEEK_SET)
        self._write(self._null_file, mask)

    @property
    def share(self) -> int:
        """Rows, without those that were given away."""
        return self.rows if self._kept is None else self._kept

    def facts(self) -> dict[str, Any]:
        """What the other workers have to know: the rows, and of each column its nulls and lengths."""
        columns = [dict(facts) for facts in self._facts]
        for number, long in self._long.items():
            columns[number]["lengths"] = long.lengths()
        return {"rows": self.rows, "columns": columns}

    def give(self, rows: int) -> bytes:
        """Take the last rows out of this share, for another worker."""
        self._kept = self.share - rows
        physical = self._runs.physical(np.arange(self._kept, self._kept + rows))
        arrays: dict[str, Array] = {}
        reader = _Reader(self._files)
        for dtype, members, file in self._groups:
            matrix = reader.array(file, dtype)[: self.rows * len(members)].reshape(self.rows, len(members))[physical]
            for place, number in enumerate(members):
                arrays[f"{number}.data"] = np.ascontiguousarray(matrix[:, place])
        for number, long in self._long.items():
            lengths, data = long.rows(reader, physical)
            arrays[f"{number}.data"] = data
            arrays.update({f"{number}.{level}": each for level, each in enumerate(lengths)})
        if self._null_file is not None:
            mask = reader.array(self._null_file, np.dtype(np.uint8))
            padded = np.zeros(self.rows * len(self._columns), np.uint8)
            padded[: len(mask)] = mask
            arrays["nulls"] = padded.reshape(self.rows, -1)[physical]
        packed = io.BytesIO()
        np.savez(packed, **arrays)  # type: ignore[arg-type]
        return packed.getvalue()

    def take(self, packed: bytes) -> None:
        """Append rows that another worker gave."""
        with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
            nulls = arrays.get("nulls")
            values = []
            for number, column in enumerate(self._columns):
                levels = column.depth + column.is_bytes
                mask = None if nulls is None or not nulls[:, number].any() else nulls[:, number].astype(bool)
                lengths = [arrays[f"{number}.{level}"] for level in range(levels)]
                values.append(Values(arrays[f"{number}.data"], lengths, mask))
            first = values[0]
            rows = len(first.lengths[0]) if first.lengths else len(first.data)
        self.add(values, _GIVEN + self.rows + np.arange(rows))

    def layout(self) -> tuple[dict[str, Any], list[BinaryIO]]:
        """How to read the files, as plain data for ``trainer.shard``; and the files, by their numbers in it."""
        columns: list[dict[str, Any]] = [{} for _ in self._columns]
        for _, members, file in self._groups:
            for place, number in enumerate(members):
                columns[number] = {"file": file, "width": len(members), "place": place}
        for number, long in self._long.items():
            columns[number] = long.layout()
        if self._null_file is not None:
            self._files[self._null_file].truncate(self.rows * len(self._columns))
        layout = {"rows": self.share, "stored": self.rows, "runs": self._runs.in_order(), "columns": columns}
        return {**layout, "nulls": self._null_file}, self._files

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _new_file(self) -> int:
        self._files.append(tempfile.TemporaryFile(dir=self._directory, buffering=0))  # noqa: SIM115 (outlives this)
        return len(self._files) - 1

    def _write(self, file: int, array: Array) -> None:
        if not array.size:
            return
        with memoryview(np.ascontiguousarray(array)).cast("B") as data:  # type: ignore[arg-type]
            done = 0
            while done < len(data):
                done += self._files[file].write(data[done:]) or 0
            self.bytes += done


class _LongColumn:
    """Arrays or texts: their values, and the lengths of each level."""

    def __init__(self, column: Column, new_file: Callable[[], int], write: Callable[[int, Array], None]) -> None:
        self._dtype = np.dtype(column.storage)
        self._file = new_file()
        self._write = write
        self._levels = [_Level(new_file, write) for _ in range(column.depth + column.is_bytes)]

    def add(self, values: Values) -> None:
        for level, lengths in zip(self._levels, values.lengths, strict=True):
            level.add(lengths)
        self._write(self._file, values.data)

    def lengths(self) -> list[list[int]]:
        return [[level.least, level.most] for level in self._levels]

    def layout(self) -> dict[str, Any]:
        levels = [
            {"offsets": level.file, "items": level.items, "length": max(level.least, 0)} for level in self._levels
        ]
        return {"file": self._file, "levels": levels, "values": self._levels[-1].total}

    def rows(self, reader: "_Reader", rows: Array) -> tuple[list[Array], Array]:
        lengths = []
        for level in self._levels:
            starts, ends = level.bounds(reader, rows)
            lengths.append(ends - starts)
            parts = [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]
            rows = np.concatenate(parts) if parts else rows
        data: Array = reader.array(self._file, self._dtype)[rows]
        return lengths, data


class _Level:
    """How many parts each item has; a file of offsets only once not all have the same number."""

    def __init__(self, new_file: Callable[[], int], write: Callable[[int, Array], None]) -> None:
        self._new_file, self._write = new_file, write
        self.file: int | None = None
        self.items = self.total = 0
        self.least, self.most = -1, -1  # of no item

    def add(self, lengths: Array) -> None:
        if not len(lengths):
            return
        least, most = int(lengths.min()), int(lengths.max())
        self.least = least if self.items == 0 else min(self.least, least)
        self.most = max(self.most, most)
        if self.file is None and self.least != self.most:
            self.file = self._new_file()
            length = self.total // self.items if self.items else 0
            for start in range(0, self.items + 1, _PIECE):
                self._write(self.file, np.arange(start, min(start + _PIECE, self.items + 1), dtype=np.int64) * length)
        if self.file is not None:
            self._write(self.file, self.total + np.cumsum(lengths, dtype=np.int64))
        self.items += len(lengths)
        self.total += int(lengths.sum())

    def bounds(self, reader: "_Reader", items: Array) -> tuple[Array, Array]:
        if self.file is None:
            return items * self.most, (items + 1) * self.most
        offsets = reader.array(self.file, np.dtype(np.int64))
        return offsets[items], offsets[items + 1]


class _Runs:
    """Which rows came from which of Spark's partitions.

    A shuffle delivers the partitions in any order, and each as a whole, in its own order. So a short list of runs
    gives every row its number in an order that is the same whenever the DataFrame is computed again.
    """

    def __init__(self) -> None:
        self._runs: list[list[int]] = []  # first id, first row, rows
        self._last = -1

    def add(self, ids: Array, first_row: int) -> None:
        partitions = ids >> ROW_BITS
        breaks = np.flatnonzero((partitions[1:] != partitions[:-1]) | (ids[1:] < ids[:-1])) + 1
        starts = [0, *breaks.tolist()]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            first = int(ids[start])
            goes_on = start == 0 and self._runs and first >> ROW_BITS == self._last >> ROW_BITS and first > self._last
            if goes_on:
                self._runs[-1][2] += end - start
            else:
                self._runs.append([first, first_row + start, end - start])
        self._last = int(ids[-1])

    def in_order(self) -> list[list[int]]:
        """``[first row, rows]`` of each run, in the order of the DataFrame."""
        return [[row, rows] for _, row, rows in sorted(self._runs)]

    def physical(self, numbers: Array) -> Array:
        """Where the rows of these numbers (in the DataFrame's order) are in the files."""
        runs = np.array(self.in_order(), np.int64).reshape(-1, 2)
        ends = np.cumsum(runs[:, 1])
        run = np.searchsorted(ends, numbers, side="right")
        rows: Array = numbers - (ends - runs[:, 1])[run] + runs[:, 0][run]
        return rows


class _Reader:
    """Reads back what was written."""

    def __init__(self, files: Sequence[BinaryIO]) -> None:
        self._files = files

    def array(self, file: int, dtype: "np.dtype[Any]") -> Array:
        size = os.fstat(self._files[file].fileno()).st_size
        if not size:
            return np.empty(0, dtype)
        mapped: Array = np.memmap(self._files[file], dtype, "r", shape=(size // dtype.itemsize,))
        return mapped
