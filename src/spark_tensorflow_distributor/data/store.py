"""Maps a shard's files as tensors, from which TensorFlow's own operations read rows as batches.

A file is mapped into memory and passed to TensorFlow without a copy (DLPack), so a shard may be larger than memory: the
kernel reads the pages that a batch needs, and drops them when memory runs short.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from ..errors import DataError
from .columns import Column
from .layout import ColumnFacts, LevelLayout, NestedLayout, PlainLayout, ShardLayout, file_positions, range_offsets

Array: TypeAlias = npt.NDArray[Any]
Mask: TypeAlias = npt.NDArray[np.bool_]
Tensor: TypeAlias = tf.Tensor | tf.RaggedTensor

# Above this mean length, slicing each string out of the file costs less than joining it byte by byte: 10 us per row and
# 0.1 ns per byte, compared with 0.6 us per row and 20 ns per byte.
_LONG_BYTES = 400


class MappedRows:
    """A shard's rows, mapped from its files.

    Args:
        shard: Describes the shard and its files.
        files: The descriptors of the files, which this object owns from now on.

    Attributes:
        columns: The columns by name.
        rows: Number of rows in the shard.
    """

    def __init__(self, shard: ShardLayout, files: Sequence[int]) -> None:
        self._layout = shard.frame
        self.rows = shard.frame.rows
        self.columns: dict[str, Column] = {column.name: column for column in shard.columns}
        self._numbers = {name: number for number, name in enumerate(self.columns)}
        self._layouts = dict(zip(self.columns, shard.frame.columns, strict=True))
        self._facts = dict(zip(self.columns, shard.facts.columns, strict=True))
        self._files = [os.fdopen(fd, "rb+", buffering=0) for fd in files]
        self._mapped: dict[tuple[int, tuple[int, ...]], tf.Tensor] = {}

    def close(self) -> None:
        """Close the files. Tensors that map them remain valid."""
        for file in self._files:
            file.close()

    def facts(self, name: str) -> ColumnFacts:
        """Return the facts about a column in the rows of all workers."""
        return self._facts[name]

    def fixed_shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a column's rows on all workers; None if it differs between rows."""
        lengths = self.facts(name).lengths[: self.columns[name].depth]
        if any(least != most for least, most in lengths):
            return None
        return tuple(max(least, 0) for least, _ in lengths)

    # Batches, as tensors.

    def file_positions(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Return a function that maps row numbers, in the DataFrame's order, to positions in the files."""
        ends, shifts = range_offsets(self._layout.ranges)
        if not shifts.any():
            return lambda numbers: numbers
        ends, shifts = tf.constant(ends), tf.constant(shifts)
        return lambda numbers: numbers + tf.gather(shifts, tf.searchsorted(ends, numbers, side="right"))

    def reader(self, names: Sequence[str], fill: Mapping[str, Any]) -> Callable[[tf.Tensor], dict[str, Tensor]]:
        """Return a function that reads columns at positions in the files; arrays of different lengths as RaggedTensors.

        Args:
            names: The columns.
            fill: The values that replace nulls, by column.
        """
        groups = self.matrices([name for name in names if self.columns[name].is_plain])
        nested = {name: self._nested_reader(name) for name in names if not self.columns[name].is_plain}
        nulls = self._null_reader([name for name in names if name in fill and self.facts(name).nulls])

        def read(rows: tf.Tensor) -> dict[str, Tensor]:
            values: dict[str, Tensor] = {}
            for matrix, indexes in groups:
                gathered = tf.gather(matrix, rows)
                values.update({name: self._typed(name, gathered[:, index]) for name, index in indexes.items()})
            values.update({name: read_nested(rows) for name, read_nested in nested.items()})
            for name, is_null in nulls(rows).items():
                values[name] = tf.where(is_null, tf.cast(fill[name], values[name].dtype), values[name])
            return {name: values[name] for name in names}

        return read

    def matrices(self, names: Sequence[str]) -> list[tuple[tf.Tensor, dict[str, int]]]:
        """Return the matrices that hold plain columns, each with the indexes of its columns."""
        by_file: dict[int, tuple[tf.Tensor, dict[str, int]]] = {}
        for name in names:
            layout = self._layouts[name]
            assert isinstance(layout, PlainLayout)
            if layout.file not in by_file:
                shape = (self._layout.stored, layout.width)
                by_file[layout.file] = self._tensor(layout.file, self.columns[name].storage, shape), {}
            by_file[layout.file][1][name] = layout.index
        return list(by_file.values())

    def _tensor(self, file: int, dtype: str, shape: tuple[int, ...]) -> tf.Tensor:
        """Map a file as a tensor."""
        if (file, shape) not in self._mapped:
            array = self._array(file, dtype, shape)
            is_empty = 0 in shape
            tensor = tf.constant(array) if is_empty else tf.experimental.dlpack.from_dlpack(array.__dlpack__())
            self._mapped[file, shape] = tensor
        return self._mapped[file, shape]

    def _typed(self, name: str, values: tf.Tensor) -> tf.Tensor:
        return tf.cast(values, tf.bool) if self.columns[name].dtype == "bool" else values

    def _null_reader(self, names: Sequence[str]) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
        file = self._layout.null_file
        if not names or file is None:  # only other workers have nulls
            return lambda rows: {}
        mask = self._tensor(file, "uint8", (self._layout.stored, len(self.columns)))

        def read(rows: tf.Tensor) -> dict[str, tf.Tensor]:
            gathered = tf.gather(mask, rows)
            return {name: gathered[:, self._numbers[name]] > 0 for name in names}

        return read

    def _nested_reader(self, name: str) -> Callable[[tf.Tensor], Tensor]:
        column, layout, shape = self.columns[name], self._nested(name), self.fixed_shape(name)
        if shape and 0 not in shape and not column.is_bytes:
            # All arrays have the same length: the file is a matrix, and each row is contiguous.
            matrix = self._tensor(layout.file, column.storage, (self._layout.stored, *shape))
            return lambda rows: self._typed(name, tf.gather(matrix, rows))
        levels = [self._level_bounds(level) for level in layout.levels]
        data = self._tensor(layout.file, column.storage, (layout.values,))
        items = layout.levels[-1].items
        read_strings = _long_strings if items and layout.values / items > _LONG_BYTES else _short_strings

        def read(rows: tf.Tensor) -> Tensor:
            lengths, positions = [], rows
            for level in levels[: column.depth]:
                starts, ends = level(positions)
                lengths.append(ends - starts)
                positions = tf.ragged.range(starts, ends).values
            if column.is_bytes:
                values = read_strings(data, *levels[-1](positions))
            else:
                values = self._typed(name, tf.gather(data, positions))
            if shape is None:
                return tf.RaggedTensor.from_nested_row_lengths(values, lengths, validate=False)
            return _empty_arrays(values.dtype, rows, shape) if 0 in shape else tf.reshape(values, (-1, *shape))

        return read

    def _nested(self, name: str) -> NestedLayout:
        layout = self._layouts[name]
        assert isinstance(layout, NestedLayout)
        return layout

    def _level_bounds(self, level: LevelLayout) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
        """Return a function that maps items of a level to their start and end at the next level."""
        if level.offsets is None:
            length = tf.constant(level.length, tf.int64)
            return lambda items: (items * length, (items + 1) * length)
        offsets = self._tensor(level.offsets, "int64", (level.items + 1,))
        return lambda items: (tf.gather(offsets, items), tf.gather(offsets, items + 1))

    # Whole columns, as NumPy arrays.

    def numbers(self, name: str, max_rows: int) -> Iterator[tuple[Array, Mask | None]]:
        """Yield a numeric column's values and a mask of its nulls (None if there are none), ``max_rows`` at a time.

        For a column of arrays, yields the values in all arrays, which include no nulls.
        """
        column, layout = self.columns[name], self._layouts[name]
        for start, end in self._segments(max_rows):
            if isinstance(layout, PlainLayout):
                matrix = self._array(layout.file, column.storage, (self._layout.stored, layout.width))
                yield matrix[start:end, layout.index], self._null_mask(name, start, end)
                continue
            bounds = np.array([start, end])
            for level in layout.levels:
                bounds = self._bounds(level, bounds)
            yield self._array(layout.file, column.storage, (layout.values,))[bounds[0] : bounds[1]], None

    def texts(self, name: str, max_rows: int) -> Iterator[tuple[list[str], Mask | None]]:
        """Yield the values of a column of plain strings, as :meth:`numbers` does for numbers."""
        if self.columns[name].depth:
            raise DataError(f"The column {name!r} holds arrays of strings, which are not counted. Explode it in Spark.")
        layout = self._nested(name)
        data = self._array(layout.file, "uint8", (layout.values,))
        for start, end in self._segments(max_rows):
            bounds = self._bounds(layout.levels[0], np.arange(start, end + 1))
            raw = bytes(data[bounds[0] : bounds[-1]])
            offsets = (bounds - bounds[0]).tolist()
            texts = [raw[a:b].decode(errors="replace") for a, b in itertools.pairwise(offsets)]
            yield texts, self._null_mask(name, start, end)

    def _segments(self, max_rows: int) -> Iterator[tuple[int, int]]:
        """Yield ranges of positions in the files, without rows that were handed over to other workers."""
        stored = self._layout.stored
        handed_over = np.sort(file_positions(self._layout.ranges, np.arange(self.rows, stored)))
        start = 0
        for row in [*handed_over.tolist(), stored]:
            for first in range(start, row, max_rows):
                yield first, min(first + max_rows, row)
            start = row + 1

    def _array(self, file: int, dtype: str, shape: tuple[int, ...]) -> Array:
        """Map a file as an array."""
        if 0 in shape:
            return np.zeros(shape, dtype)
        # Copy-on-write, because DLPack exports only writable memory; nothing ever writes to it.
        array: Array = np.memmap(self._files[file], dtype, "c", shape=shape)
        return array

    def _bounds(self, level: LevelLayout, items: Array) -> Array:
        if level.offsets is None:
            return items * level.length
        offsets: Array = self._array(level.offsets, "int64", (level.items + 1,))[items]
        return offsets

    def _null_mask(self, name: str, start: int, end: int) -> Mask | None:
        if self._layout.null_file is None:
            return None
        masks = self._array(self._layout.null_file, "uint8", (self._layout.stored, len(self.columns)))
        return masks[start:end, self._numbers[name]].astype(bool)


def _empty_arrays(dtype: tf.DType, rows: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    return tf.fill((tf.shape(rows)[0], *shape), "" if dtype == tf.string else tf.zeros((), dtype))


def _short_strings(data: tf.Tensor, starts: tf.Tensor, ends: tf.Tensor) -> tf.Tensor:
    """Join all strings at once from their bytes, each of which is looked up as a one-byte string."""
    count = tf.size(starts)
    letters = tf.gather(
        tf.constant([bytes([byte]) for byte in range(256)]),
        tf.cast(tf.gather(data, tf.ragged.range(starts, ends).values), tf.int32),
    )
    owners = tf.repeat(tf.range(count), ends - starts)
    return tf.raw_ops.UnsortedSegmentJoin(inputs=letters, segment_ids=owners, num_segments=count, separator="")


def _long_strings(data: tf.Tensor, starts: tf.Tensor, ends: tf.Tensor) -> tf.Tensor:
    """Slice strings out one by one: a serialised tensor of bytes ends with these bytes."""

    def cut(bounds: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        length = tf.cast(bounds[1] - bounds[0], tf.int32)
        serialized = tf.io.serialize_tensor(data[bounds[0] : bounds[1]])
        return tf.strings.substr(serialized, tf.strings.length(serialized) - length, length)

    return tf.map_fn(cut, (starts, ends), fn_output_signature=tf.string)
