"""The wide schema of several DataFrames, and by which numbers Spark deals rows."""

from spark_tensorflow_distributor.data.columns import Column
from spark_tensorflow_distributor.data.frames import is_dataframe, partition_keys, spark_hash, with_places
from spark_tensorflow_distributor.data.layout import FrameSpec


def spec(name, *types):
    columns = tuple(Column(f"c{n}", (f"c{n}",), kind, "float32") for n, kind in enumerate(types))
    return FrameSpec(name, columns, (), {})


def test_columns_of_one_type_share_a_place():
    placed = with_places([spec("a", "float", "long", "float"), spec("b", "float", "string"), spec("c", *["float"] * 3)])
    assert [each.places for each in placed] == [(0, 1, 2), (0, 3), (0, 2, 4)]


def test_frames_of_one_schema_cost_no_place():
    placed = with_places([spec("a", "float", "long"), spec("b", "float", "long")])
    assert [each.places for each in placed] == [(0, 1), (0, 1)]


def test_the_hash_is_sparks():
    # What PySpark 4.3 gave for hash(cast(i as int)).
    assert [spark_hash(value) for value in (-1, 0, 1, 2, 1000)] == [
        -1604776387,
        933211791,
        -559580957,
        1765031574,
        -14577491,
    ]


def test_there_is_a_key_for_every_partition():
    for count in (1, 2, 3, 16, 100):
        keys = partition_keys(count)
        assert [spark_hash(key) % count for key in keys] == list(range(count))


def test_what_is_no_dataframe():
    assert not is_dataframe([1])
    assert not is_dataframe("a")
