"""DataShard: a worker's part of a DataFrame, from which it makes datasets.

The driver imports this module for the class, so TensorFlow is imported only where rows are read.
"""

import logging
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import ConfigurationError
from .checks import Advice, Checks, is_integer, known_column
from .columns import by_column
from .layout import ShardLayout
from .passes import PassOrder, ShardState, equal_pass, whole_pass

if TYPE_CHECKING:
    import numpy.typing as npt
    import tensorflow as tf
    from pyspark.sql.types import StructType

    from .dataset import ReadComponent
    from .preprocessing import Adapter, Statistics
    from .store import MappedRows

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardId:
    """Identifies a shard of a DataFrame.

    Attributes:
        rank: The worker's rank.
        world_size: The number of workers.
        partition: The number of the Spark partition that holds the shard. After a restart, a partition may belong to
            another rank, but it has the same rows.
        seed: The run's seed.
    """

    rank: int
    world_size: int
    partition: int
    seed: int


class DataShard:
    """This worker's rows of a DataFrame that was passed to ``run``.

    The shards of all workers are disjoint, random, and equal in size to within one row; together they make up the
    DataFrame.

    Attributes:
        name: The name of the argument of ``run`` (str).
        num_rows: The number of rows in this shard (int).
        total_rows: The number of rows in the DataFrame (int).
    """

    def __init__(self, layout: ShardLayout, store: "MappedRows", shard_id: ShardId) -> None:
        self.name = layout.name
        self.num_rows = layout.frame.rows
        self.total_rows = layout.facts.rows
        self._schema = layout.schema
        self._store = store
        self._id = shard_id
        self._datasets = 0

    def __repr__(self) -> str:
        return f"DataShard({self.name!r}, {self.num_rows} of {self.total_rows} rows: {', '.join(self.columns)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"the DataShard {self.name!r} belongs to its worker and cannot be pickled; return values computed from it"
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """The names that ``to_tf`` accepts: the DataFrame's columns, with fields of structs as ``outer.inner``."""
        return tuple(self._store.columns)

    @property
    def schema(self) -> "StructType":
        """The DataFrame's schema, a ``pyspark.sql.types.StructType``."""
        from pyspark.sql.types import StructType

        return StructType.fromJson(dict(self._schema))

    def to_tf(
        self,
        feature_columns: str | Sequence[str],
        label_columns: str | Sequence[str] | None = None,
        *,
        batch_size: int,
        weight_column: str | None = None,
        stack: bool = False,
        shuffle: bool = True,
        seed: int | None = None,
        drop_remainder: bool = False,
        repeat: bool = False,
        first_pass: int = 0,
        fill_value: Any = None,
        ragged: str | int | Mapping[str, str | int] | None = None,
        pad_value: float = 0,
        refuse_nan: bool = False,
    ) -> "tf.data.Dataset":
        """Return this shard as a ``tf.data.Dataset``.

        One pass over the dataset is one epoch: it yields every row of this shard once, and the same number of batches
        on every rank. In ``fit``, each pass leaves out fewer than ``world_size`` rows of the DataFrame, different ones
        each time, so that all ranks have the same number of rows at every step.

        Args:
            feature_columns: The features. A name gives a tensor, a list of names a dict of tensors by name; the first
                dimension of each tensor is the batch.
            label_columns: The labels, in the same form; None for features alone.
            batch_size: The global batch size: the number of rows per step on all workers together. Each worker takes
                ``batch_size // world_size`` rows.
            weight_column: The column with the rows' weights, which are converted to float32; requires labels.
            stack: Concatenate a list of numeric columns into one float32 tensor ``[batch, k]`` instead of a dict. A
                plain column becomes one column of the tensor, and an array of fixed length n becomes n columns.
            shuffle: Use a new random order for every pass; otherwise, the DataFrame's order.
            seed: Determines the orders. By default, it is derived from the run's seed, which all attempts of a run
                share.
            drop_remainder: Leave out a smaller final batch; all batches then have a static size.
            repeat: Repeat endlessly, for use with ``steps_per_epoch``.
            first_pass: The number of the first pass, which determines its order. Each ``fit`` continues the numbers of
                the one before it; outside of ``fit``, each iterator begins with the next number. To continue where a
                dataset was after k steps of pass e, create one with ``first_pass=e`` and the same seed, and skip k
                steps.
            fill_value: The value that replaces nulls in plain columns of numbers or strings, or a dict of values by
                column. Default: nulls raise an error.
            ragged: How to treat arrays of different lengths: ``"ragged"`` (return a ``tf.RaggedTensor``), ``"pad"`` (to
                the longest on any worker), or a number (pad or truncate to this length); or a dict of these by column.
                Default: such arrays raise an error.
            pad_value: The value that padding adds to numbers; strings are always padded with "".
            refuse_nan: Reject columns that contain NaN.

        Returns:
            A dataset of ``x``, ``(x, y)`` or ``(x, y, weights)``.

        Raises:
            DataError: If a column is missing or of an unsuitable type, or has nulls, NaN or arrays of different lengths
                that no argument allows, or if there are no rows.
            ConfigurationError: If an argument is invalid, such as a ``batch_size`` below the number of workers.
        """
        from .dataset import build_dataset

        columns = feature_columns, label_columns
        components = self._components(columns, weight_column, stack, fill_value, ragged, pad_value, refuse_nan)
        state = self._new_state(batch_size, drop_remainder, first_pass, only_trains=repeat)
        self._datasets += 1
        if seed is None:
            seed = zlib.crc32(f"{self._id.seed} {self.name} {self._datasets}".encode())
        order = PassOrder(self.num_rows, seed, self._id.partition) if shuffle else None
        return build_dataset(components, self._store.file_positions(), state, order, repeat=repeat)

    def steps(self, batch_size: int, *, drop_remainder: bool = False) -> int:
        """Return the number of steps per epoch in ``fit``: ``steps_per_epoch`` for a dataset with ``repeat=True``.

        Args:
            batch_size: The global batch size, as in :meth:`to_tf`.
            drop_remainder: Leave out a smaller final batch.

        Raises:
            ConfigurationError: If ``batch_size`` is not an integer, or is below the number of workers.
        """
        return self._new_state(batch_size, drop_remainder).equal.steps

    def adapt(self, layer: Any, columns: str | Sequence[str], *, fill_value: Any = None) -> Any:
        """Set up a Keras preprocessing layer from the rows of all workers, identically on every rank.

        All ranks must make the same calls in the same order. With several workers, each call takes about a second.

        Args:
            layer: A ``Normalization``, ``StringLookup`` or ``IntegerLookup`` layer.
            columns: The name of a column, or for ``Normalization`` also the list of columns that ``to_tf`` stacks.
            fill_value: The value that replaces nulls, or a dict of values by column. Pass the same as to ``to_tf``, so
                that the layer is set up for the values that it will see. Default: nulls raise an error.

        Returns:
            The layer.

        Raises:
            DataError: If a column is missing, does not suit the layer, or has nulls and no ``fill_value``.
            ConfigurationError: If the layer is of another type, or an argument or setting is not supported for it.
        """
        return self._adapter().adapt(layer, columns, fill_value)

    def vocabulary(self, column: str, max_tokens: int | None = None) -> list[Any]:
        """Return the distinct values of a column on all workers, the most frequent first; ties are sorted by value.

        Nulls are not counted. All ranks must call this, as for :meth:`adapt`.

        Args:
            column: A column of strings, integers or booleans.
            max_tokens: The maximum number of values to return; None for all of them.

        Raises:
            DataError: If there is no such column, or it holds floats or arrays of strings.
        """
        return self._adapter().vocabulary(column, max_tokens)

    def statistics(self, column: str) -> "Statistics":
        """Return count, mean, variance, minimum and maximum of a numeric column's values on all workers, without nulls.

        All ranks must call this, as for :meth:`adapt`.

        Raises:
            DataError: If there is no such column, or it is not numeric.
        """
        return self._adapter().statistics([column])[0]

    def numbers(self, column: str) -> "Iterator[npt.NDArray[Any]]":
        """Yield the values of a numeric column in this worker's rows, without nulls, as 1-D arrays of many rows each.

        For a column of arrays, yields the values in all arrays.

        Raises:
            DataError: If there is no such column, or it is not numeric.
        """
        return self._adapter().numbers(column)

    def width_of(self, column: str) -> int | None:
        """Return how many numbers each row has in a column; None for texts, and for arrays of different lengths.

        Raises:
            DataError: If there is no such column.
        """
        shape = self._store.fixed_shape(known_column(self._store, f"The DataFrame {self.name!r}", column).name)
        return None if shape is None or self._store.columns[column].is_bytes else math.prod(shape)

    def check(self, columns: Sequence[str], advice: Advice) -> None:
        """Raise what ``to_tf`` would raise about columns that have nulls or arrays of different lengths, on every rank.

        Args:
            columns: The names of the columns.
            advice: What the errors tell the user to do instead of passing arguments to ``to_tf``.

        Raises:
            DataError: A column has nulls or arrays of different lengths, or there are no rows.
        """
        checks = Checks(self._store, f"The DataFrame {self.name!r}", self.total_rows, advice)
        checks.rows()
        for name in columns:
            checks.column(name, {}, refuse_nan=False)
            checks.shape(name, None)

    def close(self) -> None:
        """Close the files; datasets made from them remain usable. The library calls this at the end of a run."""
        self._store.close()

    def _adapter(self) -> "Adapter":
        from .preprocessing import Adapter

        return Adapter(self._store, self.name, self.total_rows, self._id.world_size)

    def _components(
        self,
        columns: tuple[str | Sequence[str], str | Sequence[str] | None],
        weight_column: str | None,
        stack: bool,
        fill_value: Any,
        ragged: str | int | Mapping[str, str | int] | None,
        pad_value: float,
        refuse_nan: bool,
    ) -> "list[ReadComponent]":
        """Check the columns, and return functions that read features, labels and weights."""
        from .dataset import ColumnReader

        features, labels, weights = _names(columns[0]), _names(columns[1]), _names(weight_column)
        if weights and not labels:
            raise ConfigurationError(f"weight_column={weight_column!r} requires label_columns.")
        if not features:
            raise ConfigurationError("feature_columns names no column.")
        names = list(dict.fromkeys([*features, *labels, *weights]))
        checks = Checks(self._store, f"The DataFrame {self.name!r}", self.total_rows)
        fill: dict[str, Any] = by_column("fill_value", fill_value, names)
        choices: dict[str, str | int] = by_column("ragged", ragged, names)
        checks.rows()
        for name in names:
            checks.column(name, fill, refuse_nan=refuse_nan)
        for name in labels:
            checks.label(name)
        for name in weights:
            checks.weight(name)
        shapes = {name: checks.shape(name, choices.get(name)) for name in names}
        if stack:
            for name in features + labels:
                checks.stackable(name, shapes[name])
        reader = ColumnReader(self._store, fill, shapes, pad_value)
        components: list[ReadComponent] = []
        for given, group in zip(columns, (features, labels), strict=True):
            if isinstance(given, str):
                components.append(reader.single(given))
            elif group:
                components.append(reader.stacked(group) if stack else reader.named(group))
        if weights:
            components.append(reader.weights(weights[0]))
        return components

    def _new_state(
        self, batch_size: int, drop_remainder: bool, first_pass: int = 0, *, only_trains: bool = False
    ) -> ShardState:
        size = self._id.world_size
        if not is_integer(batch_size) or batch_size < size:
            raise ConfigurationError(
                f"batch_size is {batch_size!r}. It is the global batch size, and must be an integer of at "
                f"least one row per worker: {size} here."
            )
        batch = int(batch_size) // size
        if batch_size % size and self._id.rank == 0:
            _log.warning(
                "batch_size=%d is not divisible by %d workers: each takes %d rows per step, %d in total.",
                batch_size, size, batch, batch * size,
            )  # fmt: skip
        equal = equal_pass(self.total_rows, size, batch, drop_remainder=drop_remainder)
        whole = equal if drop_remainder or only_trains else whole_pass(self.num_rows, self.total_rows, size, batch)
        return ShardState(self.name, batch * size, whole, equal, first_pass)


def _names(columns: str | Sequence[str] | None) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns or ())


def open_shards(layouts: Sequence[ShardLayout], files: Sequence[int], shard_id: ShardId) -> dict[str, DataShard]:
    """Return a worker's shards by the names of the arguments.

    Args:
        layouts: The layouts of the shards.
        files: The file descriptors of all shards, in order.
        shard_id: Identifies the shards.
    """
    from .store import MappedRows

    shards, start = {}, 0
    for layout in layouts:
        store = MappedRows(layout, files[start : start + layout.num_files])
        shards[layout.name] = DataShard(layout, store, shard_id)
        start += layout.num_files
    return shards
