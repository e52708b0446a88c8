"""The wide schema of several DataFrames, and the keys by which Spark distributes rows."""

from types import SimpleNamespace

from spark_tensorflow_distributor.data.columns import Column
from spark_tensorflow_distributor.data.frames import (
    assign_positions,
    frames_of,
    is_dataframe,
    partition_keys,
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
