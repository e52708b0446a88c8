"""Mapped files as tensors, and rows of them as a batch. TensorFlow's own operations throughout: no Python a batch.

A file is mapped into memory and handed to TensorFlow without a copy (DLPack), so a share may be larger than memory:
the kernel reads the pages that a batch needs, and drops them when it needs room.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DataError
from .columns import Column

# Above this mean length, cutting every string out of the file costs less than putting it together byte by byte:
# 0.6 us a row and 20 ns a byte against 10 us a row and 0.1 ns a byte.
_LONG_BYTES = 400


class MappedRows:
    """A share's files.

    Args:
        layout: of one frame, as ``agent.spool.FrameSpool.layout`` gave it.
        columns: of the frame.
        files: descriptors, by the numbers in the layout; owned by this object from now on.
    """

    def __init__(self, layout: Mapping[str, Any], columns: Sequence[Column], files: Sequence[int]) -> None:
        self._layout = layout
        self.columns = {column.name: (number, column) for number, column in enumerate(columns)}
        self._files = [os.fdopen(fd, "rb+", buffering=0) for fd in files]
        self._mapped: dict[tuple[int, tuple[int, ...]], Any] = {}

    def close(self) -> None:
        """Let go of the files. What was mapped stays for as long as it is used."""
        for file in self._files:
            file.close()

    @property
    def rows(self) -> int:
        return int(self._layout["rows"])

    def facts(self, name: str) -> Mapping[str, Any]:
        """What is known of the column over all workers: nulls, inner_nulls, nans, lengths."""
        facts: Mapping[str, Any] = self._layout["all"]["columns"][self.columns[name][0]]
        return facts

    def array(self, file: int, dtype: str, shape: tuple[int, ...]) -> Any:
        """A file as a NumPy array, mapped, not read."""
        if 0 in shape:
            return np.zeros(shape, dtype)
        # "c": writable for whoever asks, as DLPack does, though never written to.
        return np.memmap(self._files[file], dtype, "c", shape=shape)

    def tensor(self, file: int, dtype: str, shape: tuple[int, ...]) -> Any:
        """A file as a tensor that shares its memory."""
        import tensorflow as tf

        if (file, shape) not in self._mapped:
            array = self.array(file, dtype, shape)
            is_empty = 0 in shape
            tensor = tf.constant(array) if is_empty else tf.experimental.dlpack.from_dlpack(array.__dlpack__())
            self._mapped[file, shape] = tensor
        return self._mapped[file, shape]

    def physical(self) -> Callable[[Any], Any]:
        """From rows' numbers in the DataFrame's order to where they are in the files."""
        import tensorflow as tf

        ends, shifts = self._runs()
        if not shifts.any():
            return lambda numbers: numbers
        ends, shifts = tf.constant(ends), tf.constant(shifts)
        return lambda numbers: numbers + tf.gather(shifts, tf.searchsorted(ends, numbers, side="right"))

    def reader(self, names: Sequence[str], fill: Mapping[str, Any]) -> Callable[[Any], dict[str, Any]]:
        """A function from rows' places in the files to a dict of tensors, one a column, ragged where the rows are."""
        plain = [name for name in names if "levels" not in self._of(name)]
        long = {name: self._long_reader(name) for name in names if name not in plain}
        by_group: dict[int, list[str]] = {}
        for name in plain:
            by_group.setdefault(self._of(name)["file"], []).append(name)
        groups = {file: self.matrix(members[0]) for file, members in by_group.items()}
        nulls = self._null_reader([name for name in names if name in fill and self.facts(name)["nulls"]])

        def read(rows: Any) -> dict[str, Any]:
            import tensorflow as tf

            values: dict[str, Any] = {}
            for file, members in by_group.items():
                matrix = tf.gather(groups[file], rows)
                for name in members:
                    values[name] = self.typed(name, matrix[:, self._of(name)["place"]])
            values.update({name: read_long(rows) for name, read_long in long.items()})
            for name, is_null in nulls(rows).items():
                values[name] = tf.where(is_null, tf.cast(fill[name], values[name].dtype), values[name])
            return {name: values[name] for name in names}

        return read

    def matrix(self, name: str) -> Any:
        """The file of a plain column: [rows, width], with the columns of its type."""
        own = self._of(name)
        return self.tensor(own["file"], self.columns[name][1].storage, (self._layout["stored"], own["width"]))

    def place(self, name: str) -> tuple[int, int] | None:
        """File of a plain column, and its place in that; None for arrays and texts."""
        own = self._of(name)
        return None if "levels" in own else (own["file"], own["place"])

    def pieces(self, name: str, most: int) -> Iterator[tuple[Any, Any]]:
        """The numbers of a column, and which are null (or None), up to ``most`` rows at a time, for NumPy.

        Of arrays all values; they have no nulls.
        """
        number, column = self.columns[name]
        own = self._of(name)
        for start, end in self._segments(most):
            if "levels" not in own:
                matrix = self.array(own["file"], column.storage, (self._layout["stored"], own["width"]))
                yield matrix[start:end, own["place"]], self._null_piece(number, start, end)
                continue
            bounds = np.array([start, end])
            for level in own["levels"]:
                bounds = self._bounds(level, bounds)
            yield self.array(own["file"], column.storage, (own["values"],))[bounds[0] : bounds[1]], None

    def texts(self, name: str, most: int) -> Iterator[tuple[list[str], Any]]:
        """The texts of a plain column likewise."""
        number, column = self.columns[name]
        own = self._of(name)
        if column.depth:
            raise DataError(f"The column {name!r} holds arrays of texts, which are not counted. Explode it in Spark.")
        data = self.array(own["file"], "uint8", (own["values"],))
        for start, end in self._segments(most):
            bounds = self._bounds(own["levels"][0], np.arange(start, end + 1))
            raw = bytes(data[bounds[0] : bounds[-1]])
            ends = (bounds - bounds[0]).tolist()
            texts = [raw[a:b].decode(errors="replace") for a, b in itertools.pairwise(ends)]
            yield texts, self._null_piece(number, start, end)

    def _segments(self, most: int) -> Iterator[tuple[int, int]]:
        """Ranges of rows in the files, without those that were given to other workers."""
        stored = self._layout["stored"]
        given = np.sort(self._numpy_places(np.arange(self.rows, stored)))
        start = 0
        for row in [*given.tolist(), stored]:
            for first in range(start, row, most):
                yield first, min(first + most, row)
            start = row + 1

    def _numpy_places(self, numbers: Any) -> Any:
        ends, shifts = self._runs()
        return numbers + shifts[np.searchsorted(ends, numbers, side="right")] if len(numbers) else numbers

    def _runs(self) -> tuple[Any, Any]:
        """Of each run of rows: the number behind its last row, and how far its rows are from their numbers."""
        runs = np.array(self._layout["runs"], np.int64).reshape(-1, 2)
        ends = np.cumsum(runs[:, 1])
        return ends, runs[:, 0] - (ends - runs[:, 1])

    def _bounds(self, level: Mapping[str, Any], items: Any) -> Any:
        if level["offsets"] is None:
            return items * level["length"]
        return self.array(level["offsets"], "int64", (level["items"] + 1,))[items]

    def _null_piece(self, number: int, start: int, end: int) -> Any:
        if self._layout["nulls"] is None:
            return None
        mask = self.array(self._layout["nulls"], "uint8", (self._layout["stored"], len(self.columns)))
        return mask[start:end, number].astype(bool)

    def fixed_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a column's rows where all have the same, over all workers; None where they differ."""
        shape = []
        for least, most in self.facts(name).get("lengths", [])[: self.columns[name][1].depth]:
            if least != most:
                return None
            shape.append(max(least, 0))
        return tuple(shape)

    def typed(self, name: str, values: Any) -> Any:
        import tensorflow as tf

        return tf.cast(values, tf.bool) if self.columns[name][1].dtype == "bool" else values

    def _of(self, name: str) -> Mapping[str, Any]:
        own: Mapping[str, Any] = self._layout["columns"][self.columns[name][0]]
        return own

    def _null_reader(self, names: Sequence[str]) -> Callable[[Any], dict[str, Any]]:
        file = self._layout["nulls"]
        if not names or file is None:  # nulls on other workers only
            return lambda rows: {}
        mask = self.tensor(file, "uint8", (self._layout["stored"], len(self.columns)))

        def read(rows: Any) -> dict[str, Any]:
            import tensorflow as tf

            found = tf.gather(mask, rows)
            return {name: found[:, self.columns[name][0]] > 0 for name in names}

        return read

    def _long_reader(self, name: str) -> Callable[[Any], Any]:
        number, column = self.columns[name]
        own = self._layout["columns"][number]
        levels = [self._level(level) for level in own["levels"]]
        data = self.tensor(own["file"], column.storage, (own["values"],))
        items = own["levels"][-1]["items"]
        is_long = bool(items) and own["values"] / items > _LONG_BYTES
        shape = self.fixed_shape(name)

        def read(rows: Any) -> Any:
            import tensorflow as tf

            lengths, places = [], rows
            for level in levels[: column.depth]:
                starts, ends = level(places)
                lengths.append(ends - starts)
                places = tf.ragged.range(starts, ends).values
            if column.is_bytes:
                starts, ends = levels[-1](places)
                values = (_long_strings if is_long else _short_strings)(data, starts, ends)
            else:
                values = self.typed(name, tf.gather(data, places))
            if shape is not None:
                return tf.reshape(values, (-1, *shape)) if 0 not in shape else _without_values(values, rows, shape)
            return tf.RaggedTensor.from_nested_row_lengths(values, lengths, validate=False)

        if shape is None or column.is_bytes or 0 in shape or not column.depth:
            return read
        # All of one length: the file is a matrix, and a row of it is one piece of memory.
        matrix = self.tensor(own["file"], column.storage, (self._layout["stored"], *shape))

        def read_matrix(rows: Any) -> Any:
            import tensorflow as tf

            return self.typed(name, tf.gather(matrix, rows))

        return read_matrix

    def _level(self, level: Mapping[str, Any]) -> Callable[[Any], tuple[Any, Any]]:
        import tensorflow as tf

        if level["offsets"] is None:
            length = tf.constant(level["length"], tf.int64)
            return lambda items: (items * length, (items + 1) * length)
        offsets = self.tensor(level["offsets"], "int64", (level["items"] + 1,))
        return lambda items: (tf.gather(offsets, items), tf.gather(offsets, items + 1))


def _without_values(values: Any, rows: Any, shape: tuple[int, ...]) -> Any:
    import tensorflow as tf

    return (
        tf.zeros((tf.shape(rows)[0], *shape), values.dtype)
        if values.dtype != tf.string
        else tf.fill((tf.shape(rows)[0], *shape), "")
    )


def _short_strings(data: Any, starts: Any, ends: Any) -> Any:
    """Strings put together from their bytes, each looked up as a string of one byte: all strings at once."""
    import tensorflow as tf

    count = tf.size(starts)
    letters = tf.gather(
        tf.constant([bytes([byte]) for byte in range(256)]),
        tf.cast(tf.gather(data, tf.ragged.range(starts, ends).values), tf.int32),
    )
    owners = tf.repeat(tf.range(count), ends - starts)
    return tf.raw_ops.UnsortedSegmentJoin(inputs=letters, segment_ids=owners, num_segments=count, separator="")


def _long_strings(data: Any, starts: Any, ends: Any) -> Any:
    """Strings cut out one by one: a tensor of bytes, serialised, has them in one piece at its end."""
    import tensorflow as tf

    def cut(bounds: Any) -> Any:
        length = tf.cast(bounds[1] - bounds[0], tf.int32)
        serialized = tf.io.serialize_tensor(data[bounds[0] : bounds[1]])
        return tf.strings.substr(serialized, tf.strings.length(serialized) - length, length)

    return tf.map_fn(cut, (starts, ends), fn_output_signature=tf.string)
