"""From rows in files to a ``tf.data.Dataset`` of batches.

A batch is made from a step's number alone: the rows' numbers in the order of this pass (a keyed permutation, so there
is no list of them), their places in the files, and one gather for each file. All of it runs in TensorFlow's threads,
several batches at a time. Python is asked once a pass, for its number.
"""

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .passes import PassPlan
from .store import MappedRows

# From places in the files to what a part of a batch is: a tensor, or a dict of them.
Read = Callable[[Any], Any]
# Batches that are ready before they are asked for, and how many are made at a time at most.
_AHEAD = 4
_MOST_CALLS = 8


@dataclass
class ShardState:
    """What a dataset of a shard is known by, later on its way.

    Attributes:
        name: of the shard.
        global_batch: rows of a step on all workers.
        whole: the pass that takes every row; of a dataset for training alone the same as ``equal``.
        equal: the pass that takes as many on every rank.
        is_training: which of the two a pass that begins now shall be.
        first: number of the first pass.
        passes: number of the next pass.
        epoch: of ``fit``, which the passes that begin now belong to; their number goes by it. None outside of ``fit``,
            or where passes follow one another without end.
    """

    name: str
    global_batch: int
    whole: PassPlan
    equal: PassPlan
    is_training: bool = False
    first: int = 0
    passes: int = 0
    epoch: int | None = None

    def begin(self) -> tuple[PassPlan, int]:
        """The next pass, and its number."""
        number, self.passes = self.passes, self.passes + 1
        if self.is_training and self.epoch is not None:
            number = self.first + self.epoch
        return self.equal if self.is_training else self.whole, number


@dataclass(frozen=True)
class PassOrder:
    """A random order of a share's rows for every pass; ``share`` is the number of the share."""

    rows: int
    seed: int
    share: int

    def key(self, number: int) -> list[int]:
        """Two numbers that stand for the order of the pass of this number."""
        text = f"{self.seed} {self.share} {number}".encode()
        return [zlib.crc32(text + bytes([place])) for place in range(2)]


class ColumnReader:
    """How the columns of a store are read.

    Args:
        store: the rows.
        fill: values for nulls, by column.
        shapes: of the rows of each column; None for ragged ones.
        pad_value: for the places that padding adds.
    """

    def __init__(
        self, store: MappedRows, fill: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...] | None], pad_value: Any
    ) -> None:
        self._store, self._fill, self.shapes, self._pad_value = store, fill, shapes, pad_value

    def named(self, names: Sequence[str], given: str | Sequence[str] | None) -> Read:
        """One tensor for one name, a dict for a list."""
        columns = {name: self._shaped(name) for name in names}
        read = self._store.reader(names, self._fill)

        def read_parts(rows: Any) -> Any:
            values = {name: columns[name](value) for name, value in read(rows).items()}
            return values[names[0]] if isinstance(given, str) else values

        return read_parts

    def weights(self, name: str) -> Read:
        """One column as float32."""
        read = self._store.reader([name], self._fill)

        def read_weights(rows: Any) -> Any:
            import tensorflow as tf

            return tf.cast(read(rows)[name], tf.float32)

        return read_weights

    def stacked(self, names: Sequence[str]) -> Read:
        """All columns beside each other: float32 [rows, k]."""
        place = self._store.place
        is_plain = {name: place(name) is not None and not self._is_filled(name) for name in names}
        by_file: dict[int, list[str]] = {}
        for name in names:
            if is_plain[name] and (found := place(name)):
                by_file.setdefault(found[0], []).append(name)
        matrices = {file: self._store.matrix(members[0]) for file, members in by_file.items()}
        places = {file: [found[1] for name in members if (found := place(name))] for file, members in by_file.items()}
        others = [name for name in names if not is_plain[name]]
        read_others = self.named(others, None)
        widths = {name: self._width(name) for name in names}
        order = _order([name for members in by_file.values() for name in members] + others, names, widths)

        def read(rows: Any) -> Any:
            import tensorflow as tf

            parts = [_select(tf.gather(matrix, rows), places[file]) for file, matrix in matrices.items()]
            values = read_others(rows) if others else {}
            parts += [tf.reshape(values[name], (-1, widths[name])) for name in others]
            parts = [tf.cast(part, tf.float32) for part in parts]
            whole = parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)
            return whole if order is None else tf.gather(whole, order, axis=1)

        return read

    def _is_filled(self, name: str) -> bool:
        return name in self._fill and bool(self._store.facts(name)["nulls"])

    def _width(self, name: str) -> int:
        return int(np.prod(self.shapes[name] or ()))

    def _shaped(self, name: str) -> Callable[[Any], Any]:
        """Pad or cut where it was asked for."""
        shape, fixed = self.shapes[name], self._store.fixed_shape(name)
        if shape is None or shape == fixed:
            return lambda value: value
        _, column = self._store.columns[name]

        def pad(value: Any) -> Any:
            import tensorflow as tf

            if not isinstance(value, tf.RaggedTensor):
                value = tf.RaggedTensor.from_tensor(value, ragged_rank=column.depth)
            default = "" if column.is_bytes else tf.cast(self._pad_value, value.dtype)
            return value.to_tensor(default, shape=(None, *shape))

        return pad


def _order(have: Sequence[str], want: Sequence[str], widths: Mapping[str, int]) -> list[int] | None:
    """Where each column of the result is in what was put together; None where it is in order already."""
    if list(have) == list(want):
        return None
    starts, start = {}, 0
    for name in have:
        starts[name], start = start, start + widths[name]
    return [place for name in want for place in range(starts[name], starts[name] + widths[name])]


def _select(matrix: Any, places: Sequence[int]) -> Any:
    """Columns of a matrix."""
    import tensorflow as tf

    if list(places) == list(range(matrix.shape[1])):
        return matrix
    if list(places) == list(range(places[0], places[0] + len(places))):
        return matrix[:, places[0] : places[0] + len(places)]
    return tf.gather(matrix, places, axis=1)


def dataset(
    parts: Sequence[Read], physical: Callable[[Any], Any], feed: ShardState, order: PassOrder | None, *, repeat: bool
) -> Any:
    """The dataset of a share.

    Args:
        parts: how features, labels and weights are read.
        physical: from rows' numbers to their places in the files.
        feed: how a pass is cut into batches.
        order: of the rows; None for the DataFrame's.
        repeat: pass after pass without end.
    """
    import tensorflow as tf

    is_static = feed.equal.is_even and feed.whole.is_even

    def begin() -> Any:
        this, number = feed.begin()
        key = order.key(number) if order else [0, 0]
        return np.array([this.steps, this.rows, this.shift, *key], np.int64)

    def batch(step: Any, this: Any) -> Any:
        last = this[0] - 1
        start = step * feed.whole.batch - tf.where(step == last, this[2], 0)
        if is_static:
            numbers = start + tf.range(feed.whole.batch, dtype=tf.int64)
        else:
            end = tf.where(step < last, (step + 1) * feed.whole.batch - tf.where(step + 1 == last, this[2], 0), this[1])
            numbers = tf.range(tf.minimum(start, end), end)  # nothing behind the last step
        if order is not None and order.rows:
            seed = tf.ensure_shape(this[3:], (2,))
            numbers = tf.random.experimental.index_shuffle(numbers, seed, tf.constant(order.rows - 1, tf.int64))
        rows = physical(numbers)
        made = tuple(read(rows) for read in parts)
        return made[0] if len(made) == 1 else made

    one = tf.data.Dataset.from_tensors(0).map(lambda _: tf.ensure_shape(tf.numpy_function(begin, [], tf.int64), (5,)))
    passes = one.flat_map(lambda this: tf.data.Dataset.from_tensors(this).repeat())
    # It has no end, which TensorFlow cannot know; so the number of steps alone is that of the whole.
    passes = passes.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    made = tf.data.Dataset.zip((tf.data.Dataset.range(feed.whole.steps), passes))
    if repeat:
        made = made.repeat()
    # Nothing in it is to be converted, which would only take time and write files.
    plain = tf.autograph.experimental.do_not_convert(batch)
    threads = tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count() or 1
    calls = min(max(2, threads), _MOST_CALLS)
    made = made.map(plain, num_parallel_calls=calls, deterministic=True).prefetch(_AHEAD).with_options(options())
    made.global_batch_size = feed.global_batch  # for the progress bar
    made.shard_feed = feed
    return made


def options() -> Any:
    """Options of a shard's datasets.

    TensorFlow's rewriting of the graph copies what it refers to, and so a whole mapped file into memory. And now and
    then an iterator takes up to half a minute to end, while it waits for the thread that tunes parallelism: both were
    seen in TensorFlow 2.21. Here the numbers are set, and nothing is left to rewrite or to tune.
    """
    import tensorflow as tf

    made = tf.data.Options()
    made.experimental_optimization.apply_default_optimizations = False
    made.autotune.enabled = False
    return made


def shard_states_of(data: Any) -> list[ShardState]:
    """The shards' feeds from which a dataset was made, by whatever steps in between."""
    found: list[ShardState] = []
    waiting, seen = [data], set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if hasattr(each, "shard_feed"):
            found.append(each.shard_feed)
        elif hasattr(each, "_inputs"):
            waiting += each._inputs()
    return found
