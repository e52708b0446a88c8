"""Groups are found in batches of any size, and only one of them is in memory."""

import math

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_tensorflow_distributor.ml.groups.rows import key_runs, same_key, split_groups


def batches_of(rows, sizes):
    """Return the rows ``(key, value)`` as record batches of these sizes; the last one has the remaining rows."""
    table = pa.table({"k0": pa.array([key for key, _ in rows], pa.string()), "v0": [value for _, value in rows]})
    start = 0
    for size in [*sizes, len(rows)]:
        yield from table.slice(start, size).combine_chunks().to_batches()
        start += size


@settings(deadline=None)  # the first call imports NumPy
@given(st.lists(st.tuples(st.sampled_from([None, "a", "b", "c"]), st.integers(0, 9))), st.lists(st.integers(0, 4)))
def test_groups_do_not_depend_on_the_batches(rows, sizes):
    rows.sort(key=lambda row: (row[0] is not None, row[0] or ""))
    found = {
        group.key[0]: group.rows.column("v0").to_pylist() for group in split_groups(batches_of(rows, sizes), 1, 1 << 20)
    }
    expected = {}
    for key, value in rows:
        expected.setdefault(key, []).append(value)
    assert found == expected
    assert list(found) == list(expected)


def test_a_large_group_is_counted_but_not_kept():
    rows = [("a", 1), *(("b", i) for i in range(1000)), ("c", 2)]
    small, large, last = split_groups(batches_of(rows, [300, 300]), 1, 2000)
    assert (small.num_rows, large.num_rows, last.num_rows) == (1, 1000, 1)
    assert small.rows.num_rows == last.rows.num_rows == 1
    assert large.rows is None
    assert large.num_bytes > 2000


def test_runs_of_several_columns():
    columns = [pa.array([1, 1, 1, 2, None, None]), pa.array(["x", "x", "y", "y", "y", "y"])]
    assert key_runs(columns) == [(0, 2), (2, 3), (3, 4), (4, 6)]
    assert key_runs([pa.array([], pa.int64())]) == []


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [((1, None), (1, None), True), ((1,), (2,), False), ((math.nan,), (math.nan,), True), ((None,), (0,), False)],
)
def test_same_key(one, other, expected):
    assert same_key(one, other) is expected
