"""DataShard: a worker's share of a DataFrame, as datasets."""

import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigurationError
from .checks import Checks, is_integer
from .columns import Column, by_column
from .dataset import ColumnReader, PassOrder, ShardState, dataset
from .passes import equal_pass, whole_pass
from .preprocessing import Adapter, Statistics
from .store import MappedRows

_log = logging.getLogger("spark_tensorflow_distributor")


@dataclass(frozen=True)
class ShardId:
    """Where a shard is used.

    Attributes:
        rank, world_size: of the worker.
        partition: Spark's, by which the rows were dealt. Its rank may be another one after a restart, its rows not.
        seed: of the run.
    """

    rank: int
    world_size: int
    partition: int
    seed: int


class DataShard:
    """This worker's share of the rows of a DataFrame that was an argument of ``run``.

    The shares of all workers are disjoint, random, and equal but for a row; together they are the whole DataFrame.

    Attributes:
        name: of the argument.
        num_rows: rows of this share.
        total_rows: rows of the DataFrame.
    """

    def __init__(
        self, name: str, schema: Mapping[str, Any], store: MappedRows, total_rows: int, place: ShardId
    ) -> None:
        self.name = name
        self.num_rows = store.rows
        self.total_rows = total_rows
        self._schema = schema
        self._store = store
        self._place = place
        self._datasets = 0
        self._adapter = Adapter(store, name, place.world_size)

    def __repr__(self) -> str:
        return f"DataShard({self.name!r}, {self.num_rows} of {self.total_rows} rows: {', '.join(self.columns)})"

    def __reduce__(self) -> Any:
        raise TypeError(f"the DataShard {self.name!r} belongs to its worker; return what was computed from it")

    @property
    def columns(self) -> tuple[str, ...]:
        """The names that ``to_tf`` takes: the DataFrame's columns, a struct's fields as ``outer.inner``."""
        return tuple(self._store.columns)

    @property
    def schema(self) -> Any:
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
        pad_value: Any = 0,
        refuse_nan: bool = False,
    ) -> Any:
        """This share as a ``tf.data.Dataset``.

        Args:
            feature_columns: one name gives one tensor, a list a dict of tensors by name.
            label_columns: likewise; None for features alone.
            batch_size: rows of a step on all workers together (the global batch); each worker gets its part,
                ``batch_size // world_size``.
            weight_column: weights of the rows, float32; needs labels.
            stack: a list of columns of numbers gives one tensor [batch, k] instead of a dict, plain columns one
                place each, arrays of one length as many; float32, or an integer type where all columns have one.
            shuffle: a new order at every pass; else the DataFrame's.
            seed: of that order; default: the run's own, which is the same for all attempts of a run.
            drop_remainder: no smaller batch at the end; the batch is static in the element spec then.
            repeat: without end, for ``steps_per_epoch``.
            first_pass: number of the first pass, by which its order is drawn. A dataset made with ``first_pass=e`` and
                the same seed, and skipped by k steps, goes on where another one was in its pass e after k steps.
            fill_value: for nulls of plain columns and texts: a value, or a dict of values by column. Without it nulls
                are refused.
            ragged: for arrays of different lengths: ``"ragged"`` (a ``tf.RaggedTensor``), ``"pad"`` (to the longest of
                all workers), or a number (pad or cut to it); or a dict of these by column. Without it they are
                refused.
            pad_value: for places that padding adds; texts are padded with "" instead of 0.
            refuse_nan: refuse columns that hold NaN.

        Returns:
            ``x``, ``(x, y)`` or ``(x, y, weights)``. One pass is one epoch of this share, with the same number of
            batches on every rank and every row once. In ``fit``, fewer than ``world_size`` rows of all are left out
            of a pass, others each time, so that all ranks have the same number at every step.

        Raises:
            DataError: a column is missing, empty, null, NaN, ragged or of a type that does not fit, or there are no
                rows.
            ConfigurationError: the batch is smaller than the number of workers.
        """
        features, labels = _names(feature_columns), _names(label_columns)
        weights = _names(weight_column)
        if weights and not labels:
            raise ConfigurationError(f"weight_column={weight_column!r} without label_columns: it weighs nothing.")
        if not features:
            raise ConfigurationError("feature_columns names no column.")
        names = list(dict.fromkeys([*features, *labels, *weights]))
        checks = Checks(self._store, f"The DataFrame {self.name!r}", self.total_rows)
        fill, choices = by_column("fill_value", fill_value, names), by_column("ragged", ragged, names)
        checks.rows()
        for name in names:
            checks.column(name, fill, refuse_nan=refuse_nan)
        for name in labels:
            checks.label(name)
        for name in weights:
            checks.weight(name)
        reading = ColumnReader(
            self._store, fill, {name: checks.shape(name, choices.get(name)) for name in names}, pad_value
        )
        if stack:
            for name in features + labels:
                checks.stackable(name, reading.shapes[name])
        parts = [
            reading.stacked(each) if stack and not isinstance(given, str) else reading.named(each, given)
            for each, given in ((features, feature_columns), (labels, label_columns))
            if each
        ]
        if weights:
            parts.append(reading.weights(weights[0]))
        feed = self._feed(batch_size, drop_remainder, is_for_training=repeat)
        feed.first = feed.passes = first_pass
        self._datasets += 1
        if seed is None:
            seed = zlib.crc32(f"{self._place.seed} {self.name} {self._datasets}".encode())
        order = PassOrder(self.num_rows, seed, self._place.partition) if shuffle else None
        return dataset(parts, self._store.physical(), feed, order, repeat=repeat)

    def steps(self, batch_size: int, *, drop_remainder: bool = False) -> int:
        """Steps of an epoch of ``fit``, for ``steps_per_epoch`` of a dataset with ``repeat=True``."""
        return self._feed(batch_size, drop_remainder).equal.steps

    def adapt(self, layer: Any, columns: str | Sequence[str]) -> Any:
        """Set up a Keras preprocessing layer from the rows of all workers, the same on every rank.

        All ranks have to call it, in the same order; each call takes about a second where there are several.

        Args:
            layer: a ``Normalization``, ``StringLookup`` or ``IntegerLookup``.
            columns: a column; or for ``Normalization`` the list that ``to_tf`` stacks.

        Returns:
            The layer.

        Raises:
            DataError: a column does not fit the layer.
            ConfigurationError: the layer is of another kind.
        """
        return self._adapter.adapt(layer, columns)

    def vocabulary(self, column: str, max_tokens: int | None = None) -> list[Any]:
        """The values of a column over all workers, the most frequent first, those of one frequency in order.

        See :meth:`adapt` for what all ranks have to do.

        Args:
            column: of texts, integers or truth values.
            max_tokens: how many at most; None for all.
        """
        return self._adapter.vocabulary(column, max_tokens)

    def statistics(self, column: str) -> Statistics:
        """Count, mean, variance, least and greatest value of a column of numbers over all workers, without nulls.

        See :meth:`adapt` for what all ranks have to do.
        """
        return self._adapter.statistics([column])[0]

    def close(self) -> None:
        """Let go of the files; what was made of them goes on working. The library does so when a run has ended."""
        self._store.close()

    def _feed(self, batch_size: int, drop_remainder: bool, *, is_for_training: bool = False) -> ShardState:
        size = self._place.world_size
        if not is_integer(batch_size) or batch_size < size:
            raise ConfigurationError(
                f"batch_size is {batch_size!r}. It is the batch of all workers together, a whole number of at least "
                f"one row a worker: {size} here."
            )
        batch = int(batch_size) // size
        if batch_size % size and self._place.rank == 0:
            _log.warning(
                "batch_size=%d cannot be divided by %d workers: each takes %d rows a step, %d in all.",
                batch_size, size, batch, batch * size,
            )  # fmt: skip
        equal = equal_pass(self.total_rows, size, batch, drop_remainder=drop_remainder)
        whole = equal if drop_remainder or is_for_training else whole_pass(self.num_rows, self.total_rows, size, batch)
        return ShardState(self.name, batch * size, whole, equal)


def _names(columns: str | Sequence[str] | None) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns or ())


def shards(layouts: Sequence[Mapping[str, Any]], files: Sequence[int], place: ShardId) -> dict[str, DataShard]:
    """The shards of a worker, by the names of their arguments.

    Args:
        layouts: of each frame, as ``agent.intake.RowReceiver.layout`` gave them.
        files: descriptors of all their files.
        place: of this worker.
    """
    made = {}
    for number, layout in enumerate(layouts):
        first = layout["first_file"]
        end = layouts[number + 1]["first_file"] if number + 1 < len(layouts) else len(files)
        columns = [Column(**{**each, "path": tuple(each["path"])}) for each in layout["spec"]]
        store = MappedRows(layout, columns, files[first:end])
        name = layout["name"]
        made[name] = DataShard(name, layout["schema"], store, layout["all"]["rows"], place)
    return made
