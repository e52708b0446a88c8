"""Shards: written to files, equalised, and their rows handed over."""

import itertools
import json
import random

import numpy as np
import pytest

from spark_tensorflow_distributor.data.balance import merge_facts, plan_transfers
from spark_tensorflow_distributor.data.columns import Column, Values
from spark_tensorflow_distributor.data.layout import (
    ROW_BITS,
    ColumnFacts,
    FrameFacts,
    FrameLayout,
    LevelLayout,
    ShardLayout,
)
from spark_tensorflow_distributor.data.spool import FrameSpool


def test_few_transfers_make_shards_equal():
    assert plan_transfers([5, 5, 5]) == []
    assert plan_transfers([6, 5, 5]) == []
    assert plan_transfers([5, 6, 5]) == []
    assert plan_transfers([7, 5, 6]) == [(0, 1, 1)]
    assert plan_transfers([10, 0, 0]) == [(0, 1, 3), (0, 2, 3)]
    assert plan_transfers([0, 0, 0]) == []
    assert plan_transfers([1, 0]) == []
    rng = random.Random(0)
    for _ in range(200):
        rows = [rng.randrange(20) for _ in range(rng.randrange(1, 9))]
        after = list(rows)
        for source, target, count in plan_transfers(rows):
            assert count > 0
            after[source] -= count
            after[target] += count
        assert max(after) - min(after) <= 1
        assert sum(after) == sum(rows)


def test_facts_are_merged():
    one = FrameFacts(2, (ColumnFacts(nulls=1, lengths=((2, 3),)),))
    none = FrameFacts(0, (ColumnFacts(lengths=((-1, -1),)),))
    assert merge_facts([one, none, one]) == FrameFacts(4, (ColumnFacts(nulls=2, lengths=((2, 3),)),))
    assert merge_facts([none, none]).columns[0].lengths == ((-1, -1),)


COLUMNS = (
    Column("a", ("a",), "float", "float32"),
    Column("b", ("b",), "float", "float32"),
    Column("i", ("i",), "long", "int64"),
    Column("s", ("s",), "string", "string"),
    Column("l", ("l",), "array<int>", "int32", 1),
)


def values(first, count):
    """Return numbered rows: floats, an integer, a string of one to three letters, an array of that length."""
    numbers = np.arange(first, first + count)
    lengths = numbers % 3 + 1
    text = b"".join(bytes([65 + n % 26]) * (n % 3 + 1) for n in numbers.tolist())
    inner = np.repeat(numbers, lengths).astype(np.int32)
    nulls = numbers % 5 == 0
    return [
        Values(numbers.astype(np.float32), nulls=nulls if nulls.any() else None),
        Values((numbers * 2).astype(np.float32)),
        Values(numbers.astype(np.int64)),
        Values(np.frombuffer(text, np.uint8), [lengths]),
        Values(inner, [lengths]),
    ]


def ids(partition, first, count):
    return (partition << ROW_BITS) + np.arange(first, first + count)


def read(spool):
    """Return the rows of a spool in order, as (a, b, i, s, l, whether a is null)."""
    layout, files = spool.layout()
    stored = layout.stored

    def load(number, dtype):
        files[number].seek(0)
        return np.frombuffer(files[number].read(), dtype)

    def plain(number, dtype):
        column = layout.columns[number]
        return load(column.file, dtype).reshape(stored, column.width)[:, column.index]

    def nested(number, dtype):
        column = layout.columns[number]
        (level,) = column.levels
        offsets = np.arange(stored + 1) * level.length
        if level.offsets is not None:
            offsets = load(level.offsets, np.int64)
        data = load(column.file, dtype)
        return [data[a:b] for a, b in itertools.pairwise(offsets)]

    nulls = np.zeros((stored, len(COLUMNS)), np.uint8)
    if layout.null_file is not None:
        nulls = load(layout.null_file, np.uint8).reshape(stored, -1)
    a, b, i = plain(0, np.float32), plain(1, np.float32), plain(2, np.int64)
    s, lists = nested(3, np.uint8), nested(4, np.int32)
    order = [row for start, count in layout.ranges for row in range(start, start + count)][: layout.rows]
    return [(a[r], b[r], i[r], bytes(s[r]), lists[r].tolist(), bool(nulls[r, 0])) for r in order]


def expected(numbers):
    return [(n, 2 * n, n, bytes([65 + n % 26]) * (n % 3 + 1), [n] * (n % 3 + 1), n % 5 == 0) for n in numbers]


@pytest.fixture
def spool(tmp_path):
    made = FrameSpool(COLUMNS, str(tmp_path))
    yield made
    made.close()
    assert list(tmp_path.iterdir()) == []


def test_rows_come_back_in_the_order_of_the_partitions(spool):
    spool.add(values(100, 7), ids(2, 0, 7))  # Spark delivers the partitions in any order
    spool.add(values(0, 4), ids(0, 0, 4))
    spool.add(values(4, 6), ids(0, 4, 6))
    spool.add(values(50, 1), ids(1, 0, 1))
    assert read(spool) == expected([*range(10), 50, *range(100, 107)])
    assert spool.facts().rows == 18
    assert spool.facts().columns[0].nulls == 5
    assert spool.facts().columns[3].lengths == ((1, 3),)


def test_rows_are_handed_over(spool, tmp_path):
    other = FrameSpool(COLUMNS, str(tmp_path))
    spool.add(values(100, 7), ids(2, 0, 7))
    spool.add(values(0, 10), ids(0, 0, 10))
    other.add(values(200, 2), ids(5, 0, 2))
    first, second = spool.hand_over(3), spool.hand_over(2)
    other.receive(first)
    other.receive(second)
    assert read(spool) == expected([*range(10), 100, 101])
    assert read(other) == expected([200, 201, 104, 105, 106, 102, 103])
    other.close()


def test_layouts_and_facts_survive_json(spool):
    spool.add(values(0, 4), ids(0, 0, 4))
    layout, files = spool.layout()
    assert isinstance(layout, FrameLayout)
    shard = ShardLayout("train", {"type": "struct", "fields": []}, COLUMNS, spool.facts(), layout, len(files))
    assert ShardLayout.from_json(json.loads(json.dumps(shard.to_json()))) == shard
    assert FrameFacts.from_json(json.loads(json.dumps(shard.facts.to_json()))) == shard.facts


def test_an_empty_spool_receives_rows(spool, tmp_path):
    other = FrameSpool(COLUMNS, str(tmp_path))
    other.add(values(3, 3), ids(0, 0, 3))
    spool.receive(other.hand_over(1))
    assert read(spool) == expected([5])
    assert read(other) == expected([3, 4])
    other.close()


def test_arrays_of_equal_length_have_no_offsets(tmp_path):
    columns = (Column("l", ("l",), "array<float>", "float32", 1),)
    made = FrameSpool(columns, str(tmp_path))
    three = np.full(4, 3)
    for part in range(2):
        made.add([Values(np.arange(12, dtype=np.float32), [three])], ids(part, 0, 4))
    layout, files = made.layout()
    assert layout.columns[0].levels == (LevelLayout(items=8, length=3, offsets=None),)
    assert len(files) == 1
    made.add([Values(np.zeros(1, np.float32), [np.array([1])])], ids(9, 0, 1))
    layout, files = made.layout()
    level = layout.columns[0].levels[0]
    files[level.offsets].seek(0)
    assert np.frombuffer(files[level.offsets].read(), np.int64).tolist() == [0, 3, 6, 9, 12, 15, 18, 21, 24, 25]
    made.close()


def test_nan_is_counted_except_in_null_rows(tmp_path):
    made = FrameSpool(COLUMNS[:1], str(tmp_path))
    data = np.array([np.nan, np.nan, 1.0, np.inf], np.float32)
    made.add([Values(data, nulls=np.array([True, False, False, False]))], ids(0, 0, 4))
    assert made.facts().columns[0] == ColumnFacts(nulls=1, nans=1)
    made.close()
