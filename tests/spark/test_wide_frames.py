"""DataFrames with many columns, and with names and types that SQL must quote."""

import select
import time

import numpy as np
from pyspark.sql import functions as F

from spark_tensorflow_distributor.data.frames import frames_of
from spark_tensorflow_distributor.data.intake import RowReceiver
from spark_tensorflow_distributor.data.layout import PlainLayout


def received(frames, directory):
    """Return the values of all plain columns, by frame and column, as one worker receives them."""
    receiver = RowReceiver(
        frames.specs, frames.local_batches(), rank=0, world_size=1, directory=str(directory), local_world_size=1
    )
    try:
        while not receiver.is_complete:
            select.select([receiver], [], [])
            receiver.acknowledge()
        layouts, files = receiver.layout()
        found = {}
        for layout in layouts:
            own, files = files[: layout.num_files], files[layout.num_files :]
            for column, place in zip(layout.columns, layout.frame.columns, strict=True):
                if isinstance(place, PlainLayout):
                    shape = (layout.frame.stored, place.width)
                    matrix = np.memmap(own[place.file], column.storage, "r", shape=shape)
                    found[layout.name, column.name] = matrix[:, place.index].tolist()
        return found
    finally:
        receiver.close()


def test_every_column_arrives_under_its_name(spark, tmp_path):
    names = [f"f{number}" for number in range(300)] + ["a.b", "with `ticks`", "select", "ä b"]
    wide = spark.range(3).select(*[(F.col("id") + place).cast("float").alias(n) for place, n in enumerate(names)])
    nested = spark.range(2).select(
        F.struct((F.col("id") * 2).alias("in.ner")).alias("outer"),
        F.lit(True).alias("flag"),
        F.lit(1.5).cast("decimal(10,2)").alias("price"),
        F.expr("INTERVAL '1' DAY").alias("duration"),
        F.col("id").cast("float").alias("f0"),
    )
    _, frames = frames_of({"wide": wide, "nested": nested})
    found = received(frames, tmp_path)
    for place, name in enumerate(names):
        assert found["wide", name] == [place, place + 1, place + 2]
    assert found["nested", "outer.in.ner"] == [0, 2]
    assert found["nested", "flag"] == [1, 1]
    assert found["nested", "price"] == [1.5, 1.5]
    assert found["nested", "f0"] == [0, 1]
    assert len(found["nested", "duration"]) == 2


def test_thousands_of_columns_are_planned_in_seconds(spark):
    # Spark 3.5 takes 300 MB for each DataFrame of 20,000 columns: four of them do not fit into its default heap.
    columns = 10_000 if spark.version.startswith("3.") else 20_000
    wide = spark.range(10).selectExpr(*[f"cast(id as float) as f{number}" for number in range(columns)])
    wide.schema  # noqa: B018 (Spark's own time for it)
    started = time.monotonic()
    _, frames = frames_of({"train": wide, "test": wide})
    source = frames.source(2)
    # Each of the several causes of quadratic time made this take more than ten minutes.
    source.mapInArrow(lambda batches: batches, source.schema)
    assert time.monotonic() - started < 200
    assert [field.name for field in source.schema.fields] == ["row", "frame", "columns"]
    assert len(source.schema["columns"].dataType.fields) == columns
