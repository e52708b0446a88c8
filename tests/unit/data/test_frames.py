"""The wide schema of several DataFrames, and the keys by which Spark distributes rows."""

import time
from types import SimpleNamespace

import pytest

from spark_tensorflow_distributor import DataError
from spark_tensorflow_distributor.data.columns import Column
from spark_tensorflow_distributor.data.frames import (
    assign_positions,
    frames_of,
    is_dataframe,
    partition_keys,
    quoted_path,
    spark_hash,
)
from spark_tensorflow_distributor.data.layout import FrameSpec


def spec(name, *types):
    columns = tuple(Column(f"c{n}", (f"c{n}",), kind, "float32") for n, kind in enumerate(types))
    return FrameSpec(name, columns, (), {})


def test_columns_of_one_type_share_a_position():
    assigned = assign_positions(
        [spec("a", "float", "long", "float"), spec("b", "float", "string"), spec("c", *["float"] * 3)]
    )
    assert [each.positions for each in assigned] == [(0, 1, 2), (0, 3), (0, 2, 4)]


def test_frames_of_one_schema_share_all_positions():
    assigned = assign_positions([spec("a", "float", "long"), spec("b", "float", "long")])
    assert [each.positions for each in assigned] == [(0, 1), (0, 1)]


def test_wide_dataframes_are_planned_in_linear_time():
    # The quadratic way takes minutes, and the cubic one days.
    wide = [spec(name, *["float", "long", "double"] * 20_000) for name in "ab"]
    started = time.monotonic()
    first, second = assign_positions(wide)
    assert time.monotonic() - started < 20
    assert first.positions == second.positions == tuple(range(60_000))


def test_names_are_quoted_as_sql():
    assert quoted_path(Column("a.b`c", ("a", "b`c"), "float", "float32")) == "`a`.`b``c`"


def test_hash_matches_spark():
    # Computed by PySpark 4.3: hash(cast(i as int)).
    assert [spark_hash(value) for value in (-1, 0, 1, 2, 1000)] == [
        -1604776387,
        933211791,
        -559580957,
        1765031574,
        -14577491,
    ]


def test_every_partition_has_a_key():
    for count in (1, 2, 3, 16, 100):
        keys = partition_keys(count)
        assert [spark_hash(key) % count for key in keys] == list(range(count))


def test_other_values_are_not_dataframes():
    assert not is_dataframe([1])
    assert not is_dataframe("a")


def test_arguments_keep_their_order_with_none_for_each_dataframe():
    class DataFrame:
        isStreaming = False
        schema = SimpleNamespace(
            jsonValue=lambda: {"fields": [{"name": "x", "type": "double", "nullable": True, "metadata": {}}]}
        )

    DataFrame.__module__ = "pyspark.sql.connect.dataframe"
    arguments, frames = frames_of({"a": 1, "rows": DataFrame(), "b": 2})
    assert list(arguments.items()) == [("a", 1), ("rows", None), ("b", 2)]
    assert [spec.name for spec in frames.specs] == ["rows"]


def test_frames_inside_another_argument_are_refused():
    frame = type("DataFrame", (), {"__module__": "pyspark.sql.classic.dataframe"})()
    with pytest.raises(DataError, match=r"'data' is a list that contains .*run\(train, data_1=\.\.\., data_2=\.\.\.\)"):
        frames_of({"data": [frame, frame]})
    with pytest.raises(DataError, match=r"'data' is a dict .*run\(train, valid=\.\.\., data_2=\.\.\.\)"):
        frames_of({"data": {"valid": frame, 3: 1}})
    assert frames_of({"data": [1, "x"], "more": {"a": 1}})[0] == {"data": [1, "x"], "more": {"a": 1}}
