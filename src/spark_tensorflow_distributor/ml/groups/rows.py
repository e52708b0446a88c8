"""Divides Arrow batches that are sorted by key into groups. Pure."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

# The values of a key's columns.
Key = tuple[Any, ...]


@dataclass(frozen=True)
class GroupRows:
    """The rows of one key.

    Attributes:
        key: The key.
        rows: Its rows; None if they are too large.
        num_rows: Their number.
        num_bytes: Their size in memory.
    """

    key: Key
    rows: "pa.Table | None"
    num_rows: int
    num_bytes: int


def split_groups(batches: "Iterator[pa.RecordBatch]", num_keys: int, max_bytes: int) -> Iterator[GroupRows]:
    """Yield the groups, one at a time; at most one group and one batch are in memory.

    Args:
        batches: The batches, in which the rows of a key are contiguous, also across batches.
        num_keys: The number of columns, from the first, that form the key.
        max_bytes: Size above which the rows of a group are dropped and only counted.
    """
    import pyarrow as pa

    key: Key | None = None
    parts: list[pa.RecordBatch] = []
    num_rows = num_bytes = 0

    def group() -> GroupRows:
        assert key is not None
        table = pa.Table.from_batches(parts) if num_bytes <= max_bytes else None
        return GroupRows(key, table, num_rows, num_bytes)

    for batch in batches:
        for start, stop in key_runs(batch.columns[:num_keys]):
            part = batch.slice(start, stop - start)
            found = key_at(batch.columns[:num_keys], start)
            if key is not None and not same_key(key, found):
                yield group()
                parts, num_rows, num_bytes = [], 0, 0
            key = found
            num_rows += part.num_rows
            num_bytes += batch.nbytes * part.num_rows // len(batch)
            parts.append(part)
            if num_bytes > max_bytes:
                parts.clear()
    if key is not None:
        yield group()


def key_runs(columns: "Sequence[pa.Array]") -> list[tuple[int, int]]:
    """Return the ranges of rows in which all columns keep their value; null equals null."""
    import numpy as np

    count = len(columns[0])
    if not count:
        return []
    changes = np.zeros(count - 1, bool)
    for column in columns:
        codes = column.dictionary_encode(null_encoding="encode").indices.to_numpy(zero_copy_only=False)
        changes |= codes[1:] != codes[:-1]
    bounds = [0, *(np.flatnonzero(changes) + 1).tolist(), count]
    return list(itertools.pairwise(bounds))


def key_at(columns: "Sequence[pa.Array]", row: int) -> Key:
    """Return the key of a row."""
    return tuple(column[row].as_py() for column in columns)


def same_key(one: Key, other: Key) -> bool:
    """Return whether two keys are the same, where NaN equals NaN as it does in Spark."""
    return all(a == b or (a != a and b != b) for a, b in zip(one, other, strict=True))
