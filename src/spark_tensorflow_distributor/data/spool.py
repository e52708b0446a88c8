"""Writes a worker's rows of one DataFrame to files that the trainer maps into memory.

Plain numbers are stored row by row, with all columns of one type in one file, so that a shuffled batch reads each row
from one place. Arrays and strings are stored as consecutive values plus offsets; if all of them have the same length,
there are no offsets, and the file is a matrix, too. The files have no names, so none can be left behind.
"""

import io
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .columns import Column, Values
from .layout import (
    ROW_BITS,
    ColumnFacts,
    ColumnLayout,
    FrameFacts,
    FrameLayout,
    LevelLayout,
    NestedLayout,
    PlainLayout,
    RowRange,
    file_positions,
)

Array = npt.NDArray[Any]
_OFFSETS_AT_ONCE = 1 << 18
# The ids of received rows sort after the ids of all of this worker's own rows.
_FIRST_RECEIVED_ID = 1 << 62


class FrameSpool:
    """Stores rows, batch by batch.

    Args:
        columns: The columns of the DataFrame.
        directory: Where to create the files.

    Attributes:
        stored: Number of rows in the files.
        rows: Number of rows in the shard: the rows in the files, less the rows that were handed over to other workers.
        bytes: Number of bytes written so far.
    """

    def __init__(self, columns: Sequence[Column], directory: str) -> None:
        self._columns = columns
        self._directory = directory
        self.stored = 0
        self.rows = 0
        self.bytes = 0
        self._files: list[BinaryIO] = []
        by_type: dict[str, list[int]] = {}
        for number, column in enumerate(columns):
            if column.is_plain:
                by_type.setdefault(column.storage, []).append(number)
        self._matrices = [(np.dtype(name), members, self._new_file()) for name, members in by_type.items()]
        self._nested = {
            number: _NestedColumn(column, self._new_file, self._write)
            for number, column in enumerate(columns)
            if not column.is_plain
        }
        self._null_file: int | None = None
        self._facts = [ColumnFacts() for _ in columns]
        self._ranges = _RowRanges()

    def add(self, values: Sequence[Values], ids: Array) -> None:
        """Append rows.

        Args:
            values: One item per column, all with the same number of rows.
            ids: The ids of the rows, int64.

        Raises:
            OSError: If a file cannot be written, for example because the disk is full.
        """
        rows = len(ids)
        if not rows:
            return
        for dtype, members, file in self._matrices:
            if len(members) == 1:
                matrix = np.ascontiguousarray(values[members[0]].data)
            else:
                matrix = np.empty((rows, len(members)), dtype)
                for index, number in enumerate(members):
                    matrix[:, index] = values[number].data
            self._write(file, matrix)
        for number, column in self._nested.items():
            column.add(values[number])
        self._facts = [_updated(*each) for each in zip(self._facts, self._columns, values, strict=True)]
        self._write_nulls(values, rows)
        self._ranges.add(ids, self.stored)
        self.stored += rows
        self.rows += rows

    def _write_nulls(self, values: Sequence[Values], rows: int) -> None:
        if all(value.nulls is None for value in values):
            return
        if self._null_file is None:
            self._null_file = self._new_file()
        mask = np.zeros((rows, len(values)), np.uint8)
        for number, value in enumerate(values):
            if value.nulls is not None:
                mask[:, number] = value.nulls
        # Batches without nulls leave holes in the file, which read as zeros.
        os.lseek(self._files[self._null_file].fileno(), self.stored * len(values), os.SEEK_SET)
        self._write(self._null_file, mask)

    def facts(self) -> FrameFacts:
        """Return what the other workers need to know about these rows."""
        lengths = {number: column.lengths() for number, column in self._nested.items()}
        columns = (replace(facts, lengths=lengths.get(number, ())) for number, facts in enumerate(self._facts))
        return FrameFacts(self.rows, tuple(columns))

    def hand_over(self, rows: int) -> bytes:
        """Remove the last rows from this shard, and return them packed for another worker."""
        self.rows -= rows
        positions = file_positions(self._ranges.in_order(), np.arange(self.rows, self.rows + rows))
        arrays: dict[str, Array] = {}
        for dtype, members, file in self._matrices:
            matrix = self._read(file, dtype)[: self.stored * len(members)]
            matrix = matrix.reshape(self.stored, len(members))[positions]
            for index, number in enumerate(members):
                arrays[f"{number}.data"] = np.ascontiguousarray(matrix[:, index])
        for number, column in self._nested.items():
            lengths, data = column.read(self._read, positions)
            arrays[f"{number}.data"] = data
            arrays.update({f"{number}.{level}": each for level, each in enumerate(lengths)})
        if self._null_file is not None:
            mask = self._read(self._null_file, np.dtype(np.uint8))
            padded = np.zeros(self.stored * len(self._columns), np.uint8)
            padded[: len(mask)] = mask
            arrays["nulls"] = padded.reshape(self.stored, -1)[positions]
        packed = io.BytesIO()
        np.savez(packed, **arrays)  # type: ignore[arg-type]
        return packed.getvalue()

    def receive(self, packed: bytes) -> None:
        """Append rows that another worker handed over."""
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
        self.add(values, _FIRST_RECEIVED_ID + self.stored + np.arange(rows))

    def layout(self) -> tuple[FrameLayout, list[BinaryIO]]:
        """Return the layout of the files, and the files in the order of their numbers in it."""
        columns: dict[int, ColumnLayout] = {number: column.layout() for number, column in self._nested.items()}
        for _, members, file in self._matrices:
            for index, number in enumerate(members):
                columns[number] = PlainLayout(file, len(members), index)
        if self._null_file is not None:
            self._files[self._null_file].truncate(self.stored * len(self._columns))
        in_order = tuple(columns[number] for number in range(len(self._columns)))
        return FrameLayout(self.rows, self.stored, self._ranges.in_order(), in_order, self._null_file), self._files

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

    def _read(self, file: int, dtype: "np.dtype[Any]") -> Array:
        """Map a whole file as a flat array."""
        size = os.fstat(self._files[file].fileno()).st_size
        if not size:
            return np.empty(0, dtype)
        mapped: Array = np.memmap(self._files[file], dtype, "r", shape=(size // dtype.itemsize,))
        return mapped


Write = Callable[[int, Array], None]
Read = Callable[[int, "np.dtype[Any]"], Array]


def _updated(facts: ColumnFacts, column: Column, values: Values) -> ColumnFacts:
    """Return the facts about a column, updated by more of its rows."""
    nans = 0
    if column.storage.startswith("float") and np.isnan(values.data.sum()):
        valid = values.data if values.nulls is None or column.depth else values.data[~values.nulls]
        nans = int(np.isnan(valid).sum())
    nulls = 0 if values.nulls is None else int(values.nulls.sum())
    return ColumnFacts(facts.nulls + nulls, facts.inner_nulls + values.inner_nulls, facts.nans + nans)


class _NestedColumn:
    """Stores arrays or strings: their values, and the lengths at each level."""

    def __init__(self, column: Column, new_file: Callable[[], int], write: Write) -> None:
        self._dtype = np.dtype(column.storage)
        self._file = new_file()
        self._write = write
        self._levels = [_Level(new_file, write) for _ in range(column.depth + column.is_bytes)]

    def add(self, values: Values) -> None:
        for level, lengths in zip(self._levels, values.lengths, strict=True):
            level.add(lengths)
        self._write(self._file, values.data)

    def lengths(self) -> tuple[tuple[int, int], ...]:
        return tuple((level.least, level.most) for level in self._levels)

    def layout(self) -> NestedLayout:
        levels = (LevelLayout(level.items, max(level.least, 0), level.file) for level in self._levels)
        return NestedLayout(self._file, self._levels[-1].total, tuple(levels))

    def read(self, read: Read, items: Array) -> tuple[list[Array], Array]:
        """Return the lengths at each level, and the values, of some rows."""
        lengths = []
        for level in self._levels:
            starts, ends = level.bounds(read, items)
            lengths.append(ends - starts)
            parts = [np.arange(start, end) for start, end in zip(starts, ends, strict=True)]
            items = np.concatenate(parts) if parts else items
        data: Array = read(self._file, self._dtype)[items]
        return lengths, data


class _Level:
    """The lengths of the items at one level, with a file of offsets as soon as two lengths differ."""

    def __init__(self, new_file: Callable[[], int], write: Write) -> None:
        self._new_file, self._write = new_file, write
        self.file: int | None = None
        self.items = self.total = 0
        self.least, self.most = -1, -1

    def add(self, lengths: Array) -> None:
        if not len(lengths):
            return
        least, most = int(lengths.min()), int(lengths.max())
        self.least = least if self.items == 0 else min(self.least, least)
        self.most = max(self.most, most)
        if self.file is None and self.least != self.most:
            self.file = self._new_file()
            length, end = self.total // self.items if self.items else 0, self.items + 1
            for start in range(0, end, _OFFSETS_AT_ONCE):
                offsets = np.arange(start, min(start + _OFFSETS_AT_ONCE, end), dtype=np.int64) * length
                self._write(self.file, offsets)
        if self.file is not None:
            self._write(self.file, self.total + np.cumsum(lengths, dtype=np.int64))
        self.items += len(lengths)
        self.total += int(lengths.sum())

    def bounds(self, read: Read, items: Array) -> tuple[Array, Array]:
        if self.file is None:
            return items * self.most, (items + 1) * self.most
        offsets = read(self.file, np.dtype(np.int64))
        return offsets[items], offsets[items + 1]


class _RowRanges:
    """Records the order in which rows of Spark's partitions arrived.

    A shuffle delivers the partitions in any order, but the rows of each partition together and in order. Therefore a
    short list of ranges is enough to put the rows into an order that stays the same if the DataFrame is computed again.
    """

    def __init__(self) -> None:
        self._ranges: list[list[int]] = []  # first id, first position, rows
        self._last = -1

    def add(self, ids: Array, position: int) -> None:
        partitions = ids >> ROW_BITS
        breaks = np.flatnonzero((partitions[1:] != partitions[:-1]) | (ids[1:] < ids[:-1])) + 1
        starts = [0, *breaks.tolist()]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            first = int(ids[start])
            continues = (
                start == 0 and self._ranges and first >> ROW_BITS == self._last >> ROW_BITS and first > self._last
            )
            if continues:
                self._ranges[-1][2] += end - start
            else:
                self._ranges.append([first, position + start, end - start])
        self._last = int(ids[-1])

    def in_order(self) -> tuple[RowRange, ...]:
        """Return the ranges in the order of the DataFrame."""
        return tuple((position, rows) for _, position, rows in sorted(self._ranges))
