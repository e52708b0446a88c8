"""Builds the ``tf.data.Dataset`` of a shard.

A batch is computed from its step number alone. The order of a pass is a keyed permutation, so no list of rows is
needed: the permutation yields the batch's row numbers, these are mapped to positions in the files, and one gather per
file reads the rows. All of this runs in TensorFlow's threads, several batches at a time. Python runs once per pass, to
provide the plan of the pass.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from .passes import PassOrder, ShardState, batch_bounds
from .store import MappedRows, Tensor

# One component of a dataset's elements: a tensor, or a dict of tensors by column.
Component: TypeAlias = Tensor | dict[str, Tensor]
# Reads a component of a batch, given the positions of its rows in the files.
ReadComponent: TypeAlias = Callable[[tf.Tensor], Component]

_BATCHES_AHEAD = 4
_MAX_PARALLEL_CALLS = 8


class ColumnReader:
    """Reads columns of mapped rows as a dataset's components.

    Args:
        store: This worker's rows.
        fill: The values that replace nulls, by column.
        shapes: The shape of each column's rows; None for a ragged column.
        pad_value: The value that padding adds.
    """

    def __init__(
        self,
        store: MappedRows,
        fill: Mapping[str, Any],
        shapes: Mapping[str, tuple[int, ...] | None],
        pad_value: float,
    ) -> None:
        self._store, self._fill, self._shapes, self._pad_value = store, fill, shapes, pad_value

    def single(self, name: str) -> ReadComponent:
        """Read one column as a tensor."""
        read = self.named([name])
        return lambda rows: read(rows)[name]

    def weights(self, name: str) -> ReadComponent:
        """Read one column as a float32 tensor."""
        read = self.single(name)
        return lambda rows: tf.cast(read(rows), tf.float32)

    def named(self, names: Sequence[str]) -> Callable[[tf.Tensor], dict[str, Tensor]]:
        """Read columns as a dict of tensors."""
        reshape = {name: self._padding(name) for name in names}
        read = self._store.reader(names, self._fill)
        return lambda rows: {name: reshape[name](value) for name, value in read(rows).items()}

    def stacked(self, names: Sequence[str]) -> ReadComponent:
        """Read columns side by side as one float32 tensor ``[rows, k]``."""
        direct = [name for name in names if self._store.columns[name].is_plain and not self._has_filled_nulls(name)]
        others = [name for name in names if name not in direct]
        groups = self._store.matrices(direct)
        read_others = self.named(others)
        widths = {name: int(np.prod(self._shapes[name] or ())) for name in names}
        order = _column_order([name for _, indexes in groups for name in indexes] + others, names, widths)

        def read(rows: tf.Tensor) -> tf.Tensor:
            parts = [_select(tf.gather(matrix, rows), list(indexes.values())) for matrix, indexes in groups]
            values = read_others(rows) if others else {}
            parts += [tf.reshape(values[name], (-1, widths[name])) for name in others]
            parts = [tf.cast(part, tf.float32) for part in parts]
            stacked = parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)
            return stacked if order is None else tf.gather(stacked, order, axis=1)

        return read

    def _has_filled_nulls(self, name: str) -> bool:
        return name in self._fill and self._store.facts(name).nulls > 0

    def _padding(self, name: str) -> Callable[[Tensor], Tensor]:
        """Return a function that pads or truncates a column's arrays to the requested shape."""
        shape, column = self._shapes[name], self._store.columns[name]
        if shape is None or shape == self._store.fixed_shape(name):
            return lambda value: value

        def pad(value: Tensor) -> tf.Tensor:
            if not isinstance(value, tf.RaggedTensor):
                value = tf.RaggedTensor.from_tensor(value, ragged_rank=column.depth)
            default = "" if column.is_bytes else tf.cast(self._pad_value, value.dtype)
            return value.to_tensor(default, shape=(None, *shape))

        return pad


def _column_order(have: Sequence[str], want: Sequence[str], widths: Mapping[str, int]) -> list[int] | None:
    """Return the index of each wanted column in the stacked parts; None if the parts are already in order."""
    if list(have) == list(want):
        return None
    starts, start = {}, 0
    for name in have:
        starts[name], start = start, start + widths[name]
    return [index for name in want for index in range(starts[name], starts[name] + widths[name])]


def _select(matrix: tf.Tensor, indexes: Sequence[int]) -> tf.Tensor:
    """Select columns of a matrix, by a slice if possible."""
    if list(indexes) == list(range(matrix.shape[1])):
        return matrix
    if list(indexes) == list(range(indexes[0], indexes[0] + len(indexes))):
        return matrix[:, indexes[0] : indexes[0] + len(indexes)]
    return tf.gather(matrix, indexes, axis=1)


def build_dataset(
    components: Sequence[ReadComponent],
    file_positions: Callable[[tf.Tensor], tf.Tensor],
    state: ShardState,
    order: PassOrder | None,
    *,
    repeat: bool,
) -> tf.data.Dataset:
    """Build the dataset of a shard.

    Args:
        components: Functions that read features, labels and weights.
        file_positions: Maps row numbers, in the DataFrame's order, to positions in the files.
        state: Provides the plan of each pass.
        order: The random order of the rows; None for the DataFrame's order.
        repeat: Whether to repeat the passes endlessly.
    """
    batch = state.whole.batch
    is_static = state.equal.is_even and state.whole.is_even
    repeats = repeat and state.whole.steps > 0  # repeating an empty pass would never yield a batch

    def begin_pass() -> npt.NDArray[np.int64]:
        plan, number = state.begin_pass()
        return np.array([plan.steps, plan.rows, number], np.int64)

    def with_order(begun: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        steps, rows, number = begun
        return np.array([steps, rows, *(order.key(number) if order else [0, 0])], np.int64)

    def read_batch(step: tf.Tensor, plan: tf.Tensor) -> Component | tuple[Component, ...]:
        start, end = batch_bounds(step, plan[0], plan[1], batch, tf)
        numbers = start + tf.range(batch, dtype=tf.int64) if is_static else tf.range(start, end)
        if order is not None and order.rows:
            seed = tf.ensure_shape(plan[2:], (2,))
            numbers = tf.random.experimental.index_shuffle(numbers, seed, tf.constant(order.rows - 1, tf.int64))
        rows = file_positions(numbers)
        values = tuple(read(rows) for read in components)
        return values[0] if len(values) == 1 else values

    # AutoGraph has nothing to convert here, and would only take time and write files.
    plain = tf.autograph.experimental.do_not_convert
    plans = tf.data.Dataset.from_tensors(0).map(plain(lambda _: _call(begin_pass, [], 3)))
    if repeats:
        # Each iterator counts its own passes, because others may prefetch passes that nobody will use.
        plans = plans.flat_map(plain(_repeated))
    plans = plans.map(plain(lambda begun: _call(with_order, [begun], 4)))
    dataset = plans.flat_map(plain(_steps_of_pass))
    length = tf.data.INFINITE_CARDINALITY if repeats else state.whole.steps
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(length))
    threads = tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count() or 1
    calls = min(max(2, threads), _MAX_PARALLEL_CALLS)
    dataset = dataset.map(plain(read_batch), num_parallel_calls=calls, deterministic=True).prefetch(_BATCHES_AHEAD)
    dataset = dataset.with_options(dataset_options())
    dataset.global_batch_size = state.global_batch  # for the progress bar
    dataset.shard_state = state
    return dataset


def _call(function: Callable[..., npt.NDArray[np.int64]], arguments: Sequence[tf.Tensor], size: int) -> tf.Tensor:
    return tf.ensure_shape(tf.numpy_function(function, arguments, tf.int64), (size,))


def _repeated(begun: tf.Tensor) -> tf.data.Dataset:
    """Return an endless dataset of passes, given the first one; their numbers, the last elements, count up."""
    later = tf.autograph.experimental.do_not_convert(lambda index: tf.add(begun, [0, 0, index]))
    return tf.data.Dataset.counter(dtype=tf.int64).map(later)


def _steps_of_pass(plan: tf.Tensor) -> tf.data.Dataset:
    """Return a dataset of a pass's steps, each with the plan, whose first number is the number of steps."""
    return tf.data.Dataset.zip((tf.data.Dataset.range(plan[0]), tf.data.Dataset.from_tensors(plan).repeat()))


def dataset_options() -> tf.data.Options:
    """Return the options of a shard's datasets.

    TensorFlow's graph rewriting copies the tensors that a graph captures, and would therefore load whole mapped files
    into memory. Autotuning can delay the destruction of an iterator by up to half a minute, because it waits for the
    tuning thread. Both were observed in TensorFlow 2.21. Neither is needed, because ``build_dataset`` sets the
    parallelism itself.
    """
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    return options
