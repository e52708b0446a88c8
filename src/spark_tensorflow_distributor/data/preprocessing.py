"""Preprocessing layers set up from the rows of all workers, alike on every rank.

Keras' own ``adapt`` sees this worker's rows only, so every rank would end with another vocabulary and another mean.
Here each rank counts its own share, all ranks tell each other, and every one puts together the same.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConfigurationError, DataError
from .columns import nearest
from .store import MappedRows

_ROWS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Statistics:
    """Of a column of numbers, without its nulls; the variance is that of the rows themselves (divided by count).

    Two of them add up by the formula of Chan, Golub and LeVeque (1979), which stays exact where the mean is large.
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
        away = other.mean - self.mean
        squares = self.variance * self.count + other.variance * other.count
        squares += away * away * self.count * other.count / count
        return Statistics(
            count,
            self.mean + away * other.count / count,
            squares / count,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
        )


class Adapter:
    """The counting of one shard.

    Args:
        store: the share.
        name: of the DataFrame, for messages.
        world_size: number of ranks.
    """

    def __init__(self, store: MappedRows, name: str, world_size: int) -> None:
        self._store, self._what, self._world_size = store, f"The DataFrame {name!r}", world_size

    def adapt(self, layer: Any, columns: str | Sequence[str]) -> Any:
        """See ``DataShard.adapt``."""
        kind = type(layer).__name__
        names = [columns] if isinstance(columns, str) else list(columns)
        if kind == "Normalization":
            return self._normalize(layer, self.statistics(names), is_stacked=not isinstance(columns, str))
        if kind not in ("StringLookup", "IntegerLookup"):
            raise ConfigurationError(
                f"adapt() sets up Normalization, StringLookup and IntegerLookup, and got a {kind}. Compute what it "
                "needs in Spark, and give it to the layer's constructor."
            )
        if len(names) != 1:
            raise ConfigurationError(f"A {kind} looks up one column, and got {names}.")
        if getattr(layer, "output_mode", None) == "tf_idf":
            raise ConfigurationError("adapt() does not count documents, which output_mode='tf_idf' needs.")
        if self._column(names[0]).is_bytes != (kind == "StringLookup"):
            raise DataError(f"{self._what}, column {names[0]!r}: a {kind} does not look up {self._type(names[0])}.")
        most = layer.max_tokens
        if most is not None:
            most -= layer.num_oov_indices + (layer.mask_token is not None)
        layer.set_vocabulary(self.vocabulary(names[0], most))
        return layer

    def statistics(self, names: Sequence[str]) -> list[Statistics]:
        """One for each of the names; of arrays over all their values."""
        for name in names:
            if not self._column(name).is_number:
                raise DataError(f"{self._what}, column {name!r}: {self._type(name)} has no mean.")
        own = [sum((_statistics(part) for part in self._parts(name)), Statistics()) for name in names]
        everyone = self._all_gather([list(vars(each).values()) for each in own])
        return [sum((Statistics(*rank[place]) for rank in everyone), Statistics()) for place in range(len(names))]

    def vocabulary(self, name: str, most: int | None = None) -> list[Any]:
        """See ``DataShard.vocabulary``."""
        column = self._column(name)
        if column.storage.startswith("float"):
            raise DataError(f"{self._what}, column {name!r}: {self._type(name)} has no vocabulary.")
        counts: Counter[Any] = Counter()
        for part in self._texts(name) if column.is_bytes else self._parts(name):
            values, times = np.unique(part, return_counts=True) if isinstance(part, np.ndarray) else _count(part)
            for value, count in zip(values, times, strict=True):
                counts[value if isinstance(value, str) else int(value)] += int(count)
        whole: Counter[Any] = Counter()
        for pairs in self._all_gather(list(counts.items())):
            for value, count in pairs:
                whole[value] += count
        return [value for value, _ in sorted(whole.items(), key=lambda pair: (-pair[1], pair[0]))[:most]]

    def _normalize(self, layer: Any, found: Sequence[Statistics], *, is_stacked: bool) -> Any:
        if any(not each.count for each in found):
            raise DataError(f"{self._what}: a column for the Normalization has no values.")
        mean = np.array([each.mean for each in found])
        spread = np.sqrt([each.variance for each in found])
        # Two rows with this very mean and variance: any release's own adapt() then comes to them.
        rows = np.stack([mean - spread, mean + spread]).astype("float32")
        layer.adapt(rows if is_stacked or getattr(layer, "axis", None) not in (None, ()) else rows[:, 0])
        return layer

    def _column(self, name: str) -> Any:
        if name not in self._store.columns:
            raise DataError(f"{self._what} has no column {name!r}{nearest(name, self._store.columns)}.")
        return self._store.columns[name][1]

    def _type(self, name: str) -> str:
        return f"the type {self._column(name).spark_type}"

    def _parts(self, name: str) -> Iterator[npt.NDArray[Any]]:
        """The column's numbers, some at a time, without nulls."""
        for values, nulls in self._store.pieces(name, _ROWS_AT_ONCE):
            yield values if nulls is None else values[~nulls]

    def _texts(self, name: str) -> Iterator[list[str]]:
        for texts, nulls in self._store.texts(name, _ROWS_AT_ONCE):
            yield texts if nulls is None else [text for text, null in zip(texts, nulls, strict=True) if not null]

    def _all_gather(self, own: Any) -> list[Any]:
        if self._world_size == 1:
            return [json.loads(json.dumps(own))]
        from pyspark import BarrierTaskContext

        return [json.loads(text) for text in BarrierTaskContext.get().allGather(json.dumps(own))]


def _statistics(values: npt.NDArray[Any]) -> Statistics:
    if not values.size:
        return Statistics()
    wide = values.astype(np.float64)
    return Statistics(wide.size, float(wide.mean()), float(wide.var()), float(wide.min()), float(wide.max()))


def _count(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    counts = Counter(texts)
    return list(counts), list(counts.values())
