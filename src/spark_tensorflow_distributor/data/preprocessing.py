"""Sets up preprocessing layers from the rows of all workers, identically on every rank.

Keras' own ``adapt`` sees the rows of one worker only, so every rank would end up with a different vocabulary or mean.
Here, each rank counts the values of its own shard, the ranks exchange their counts, and each rank merges all of them.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigurationError, DataError
from ..formatting import a_type
from .checks import Checks, known_column
from .columns import Column, by_column

if TYPE_CHECKING:  # it imports TensorFlow
    from .store import MappedRows

_ROWS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Statistics:
    """Statistics of a column of numbers, without its nulls.

    Statistics are added by the formula of Chan, Golub and LeVeque (1979), which stays accurate even if the mean is
    large.

    Attributes:
        count: The number of values.
        mean: Their mean; 0 without values.
        variance: Their population variance (divided by ``count``).
        minimum: The least value; infinity without values.
        maximum: The greatest value; minus infinity without values.
    """

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf

    def __add__(self, other: "Statistics") -> "Statistics":
        if not self.count or not other.count:
            return other if other.count else self
        count = self.count + other.count
        delta = other.mean - self.mean
        squares = self.variance * self.count + other.variance * other.count
        squares += delta * delta * self.count * other.count / count
        return Statistics(
            count,
            self.mean + delta * other.count / count,
            squares / count,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
        )


class Adapter:
    """Counts the values of one shard, and merges the counts of all ranks.

    Args:
        store: The shard's rows.
        name: The DataFrame's name, for messages.
        total: Number of the DataFrame's rows on all ranks.
        world_size: The number of ranks.
    """

    def __init__(self, store: "MappedRows", name: str, total: int, world_size: int) -> None:
        self._store, self._what, self._total = store, f"The DataFrame {name!r}", total
        self._world_size = world_size

    def adapt(self, layer: Any, columns: str | Sequence[str], fill_value: Any = None) -> Any:
        """See ``DataShard.adapt``."""
        kind = type(layer).__name__
        names = [columns] if isinstance(columns, str) else list(columns)
        fill: dict[str, Any] = by_column("fill_value", fill_value, names)
        if kind == "Normalization":
            self._check_nulls(names, fill)
            statistics = self.statistics(names, fill)
            for name, each in zip(names, statistics, strict=True):
                if not each.count:
                    raise DataError(f"{self._what}, column {name!r}: it has no values for the Normalization layer.")
            return _normalize(layer, statistics, is_stacked=not isinstance(columns, str))
        if kind not in ("StringLookup", "IntegerLookup"):
            raise ConfigurationError(
                f"adapt() supports Normalization, StringLookup and IntegerLookup, but got {a_type(layer)}. Compute "
                "what it needs in Spark, and pass it to the layer's constructor."
            )
        if len(names) != 1:
            raise ConfigurationError(f"A lookup layer looks up one column, but got {names}.")
        if getattr(layer, "output_mode", None) == "tf_idf":
            raise ConfigurationError("adapt() does not count documents, which output_mode='tf_idf' requires.")
        column = self._column(names[0])
        if column.is_bytes != (kind == "StringLookup"):
            raise DataError(f"{self._subject(column)}, and {a_type(layer)} cannot look that up.")
        self._check_nulls(names, fill)
        max_tokens = layer.max_tokens
        if max_tokens is not None:
            max_tokens -= layer.num_oov_indices + (layer.mask_token is not None)
        layer.set_vocabulary(self.vocabulary(names[0], max_tokens, fill))
        return layer

    def _check_nulls(self, names: Sequence[str], fill: Mapping[str, Any]) -> None:
        """Reject nulls by the rule of ``to_tf``: a layer that was set up without nulls would meet them in training."""
        checks = Checks(self._store, self._what, self._total)
        checks.rows()
        for name in names:
            checks.column(name, fill, refuse_nan=False)

    def numbers(self, name: str) -> Iterator[npt.NDArray[Any]]:
        """See ``DataShard.numbers``."""
        column = self._column(name)
        if not column.is_number:
            raise DataError(f"{self._subject(column)}, which holds no numbers.")
        return self._numbers(name, None)

    def statistics(self, names: Sequence[str], fill: Mapping[str, Any] | None = None) -> list[Statistics]:
        """Return each column's statistics, which cover all values in arrays. Nulls count only if filled."""
        for name in names:
            column = self._column(name)
            if not column.is_number:
                raise DataError(f"{self._subject(column)}, which has no mean.")
        local = [sum(map(_statistics, self._numbers(name, fill)), Statistics()) for name in names]
        ranks = self._all_gather([astuple(each) for each in local])
        return [sum((Statistics(*rank[index]) for rank in ranks), Statistics()) for index in range(len(names))]

    def vocabulary(
        self, name: str, max_tokens: int | None = None, fill: Mapping[str, Any] | None = None
    ) -> list[str] | list[int]:
        """See ``DataShard.vocabulary``; nulls count only if filled."""
        column = self._column(name)
        if column.storage.startswith("float"):
            raise DataError(f"{self._subject(column)}, which has no vocabulary.")
        counts: Counter[Any] = Counter()
        if column.is_bytes:
            for texts in self._texts(name, fill):
                counts.update(texts)
        else:
            for part in self._numbers(name, fill):
                values, times = np.unique(part, return_counts=True)
                counts.update(dict(zip(map(int, values), map(int, times), strict=True)))
        total: Counter[Any] = Counter()
        for pairs in self._all_gather(list(counts.items())):
            for value, count in pairs:
                total[value] += count
        return [value for value, _ in sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))[:max_tokens]]

    def _column(self, name: str) -> Column:
        return known_column(self._store, self._what, name)

    def _subject(self, column: Column) -> str:
        return f"{self._what}, column {column.name!r}: it is of type {column.spark_type}"

    def _numbers(self, name: str, fill: Mapping[str, Any] | None) -> Iterator[npt.NDArray[Any]]:
        """Yield the column's numbers, with nulls filled or left out, a limited number of rows at a time."""
        for values, nulls in self._store.numbers(name, _ROWS_AT_ONCE):
            if nulls is None:
                yield values
            elif fill and name in fill:
                yield np.where(nulls, np.asarray(fill[name]).astype(values.dtype), values)
            else:
                yield values[~nulls]

    def _texts(self, name: str, fill: Mapping[str, Any] | None) -> Iterator[list[str]]:
        filled = None if fill is None else fill.get(name)
        text_of_null = filled.decode() if isinstance(filled, bytes) else filled
        for texts, nulls in self._store.texts(name, _ROWS_AT_ONCE):
            if nulls is None:
                yield texts
                continue
            pairs = list(zip(texts, nulls, strict=True))
            if text_of_null is None:
                yield [text for text, null in pairs if not null]
            else:
                yield [text_of_null if null else text for text, null in pairs]

    def _all_gather(self, value: object) -> list[Any]:
        """Return the values of all ranks, in rank order and after a round trip through JSON."""
        text = json.dumps(value)
        if self._world_size == 1:
            return [json.loads(text)]
        from pyspark import BarrierTaskContext

        return [json.loads(each) for each in BarrierTaskContext.get().allGather(text)]


def _statistics(values: npt.NDArray[Any]) -> Statistics:
    if not values.size:
        return Statistics()
    wide = values.astype(np.float64)
    return Statistics(wide.size, float(wide.mean()), float(wide.var()), float(wide.min()), float(wide.max()))


def _normalize(layer: Any, statistics: Sequence[Statistics], *, is_stacked: bool) -> Any:
    mean = np.array([each.mean for each in statistics])
    deviation = np.sqrt([each.variance for each in statistics])
    # The adapt() of any release of Keras computes exactly this mean and variance from these two rows.
    rows = np.stack([mean - deviation, mean + deviation]).astype("float32")
    layer.adapt(rows if is_stacked or getattr(layer, "axis", None) not in (None, ()) else rows[:, 0])
    return layer
