"""DataFrame arguments become the input of the barrier stage.

All frames of a run travel through one stage. They are put below each other (a union) in one wide schema: columns of
the same type share a place, so frames of the same schema cost nothing, and a place that a frame has no column for is
null. Then one shuffle deals the rows to the workers.

The dealing is Spark's round robin, with two differences. Every ``n`` rows in a row go to the ``n`` workers in an order
that changes from group to group, so that a pattern in the rows (every second one a positive, say) does not end up on
one worker. And it goes by a column, so that Spark does not sort each partition first, as it does for its own round
robin (SPARK-23207); it does so for the sake of tasks that are repeated, and of a barrier stage none is.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import ConfigurationError
from .columns import Column, columns_of
from .layout import ROW_BITS, FrameSpec


@dataclass(frozen=True)
class Frames:
    """The DataFrames among a run's arguments, as they will travel.

    Attributes:
        specs: what the workers are told of each.
        frames: the DataFrames themselves, in the same order.
    """

    specs: tuple[FrameSpec, ...] = ()
    frames: tuple[Any, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of the arguments."""
        return [spec.name for spec in self.specs]

    def source(self, num_tasks: int) -> Any:
        """One DataFrame of ``num_tasks`` partitions with the rows of all.

        Its columns: the row's id (its partition above ``ROW_BITS``, its number in that below), the number of its
        frame, then the places of the wide schema.

        The same rows in the same partitions are always dealt alike.

        Args:
            num_tasks: workers.
        """
        return self._union().repartition(num_tasks, _dealt(num_tasks))

    def local_batches(self) -> Iterator[Any]:
        """The same rows as Arrow batches for this very process, partition by partition, in order."""
        import pyarrow as pa

        def pack(batches: Iterator[Any]) -> Iterator[Any]:
            import pyarrow as pa

            for batch in batches:
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, batch.schema) as stream:
                    stream.write_batch(batch)
                yield pa.RecordBatch.from_pydict({"data": pa.array([sink.getvalue().to_pybytes()], pa.binary())})

        for row in self._union().mapInArrow(pack, "data binary").toLocalIterator(prefetchPartitions=True):
            with pa.ipc.open_stream(pa.py_buffer(row[0])) as stream:
                yield from stream

    def _union(self) -> Any:
        from pyspark.sql import functions as F

        wide = self._wide(0)
        for number in range(1, len(self.frames)):
            wide = wide.unionAll(self._wide(number))
        return wide.select(F.monotonically_increasing_id().alias("row"), "*")

    def _wide(self, number: int) -> Any:
        from pyspark.sql import functions as F

        spec = self.specs[number]
        types = {place: c.travels_as for s in self.specs for place, c in zip(s.places, s.columns, strict=True)}
        own = dict(zip(spec.places, spec.columns, strict=True))
        values = [column_expression(own[place]) if place in own else F.lit(None) for place in range(len(types))]
        columns = [value.cast(types[place]).alias(f"c{place}") for place, value in enumerate(values)]
        return self.frames[number].select(F.lit(number).cast("short").alias("frame"), *columns)


def frames_of(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], Frames]:
    """Separate the DataFrames from the other arguments.

    Returns:
        The other arguments, and the DataFrames.

    Raises:
        DataError: a column's type has no meaning in TensorFlow.
        ConfigurationError: a frame is a stream, or of pandas on Spark.
    """
    plain: dict[str, Any] = {}
    specs: list[FrameSpec] = []
    frames: list[Any] = []
    for name, value in kwargs.items():
        if type(value).__module__.startswith("pyspark.pandas."):
            raise ConfigurationError(
                f"The argument {name!r} is a {type(value).__name__} of pandas on Spark. Pass {name}.to_spark(), with "
                "index_col=... where its index is needed."
            )
        if not is_dataframe(value):
            plain[name] = value
            continue
        if value.isStreaming:
            raise ConfigurationError(
                f"The DataFrame {name!r} is a stream, which has no end. Train on what has arrived: read its source "
                "with spark.read, or call the runner from foreachBatch."
            )
        schema = value.schema.jsonValue()
        columns = columns_of(schema, f"The DataFrame {name!r}")
        specs.append(FrameSpec(name, columns, (), schema, row_count(value)))
        frames.append(value)
    return plain, Frames(with_places(specs), tuple(frames))


def is_dataframe(value: object) -> bool:
    """Whether the value is a Spark DataFrame, classic or Connect; without importing PySpark."""
    return any(
        base.__module__.startswith("pyspark.sql.") and base.__name__ == "DataFrame" for base in type(value).__mro__
    )


def with_places(specs: Sequence[FrameSpec]) -> tuple[FrameSpec, ...]:
    """Give every column its place in the wide schema: the first one of its type that its frame has not taken yet."""
    types: list[str] = []
    placed = []
    for spec in specs:
        places: list[int] = []
        for column in spec.columns:
            kind = column.travels_as
            free = (place for place, other in enumerate(types) if other == kind and place not in places)
            place = next(free, len(types))
            if place == len(types):
                types.append(kind)
            places.append(place)
        placed.append(replace(spec, places=tuple(places)))
    return tuple(placed)


def column_expression(column: Column) -> Any:
    """The Spark expression that selects a column, with vectors converted to arrays of floats."""
    from pyspark.sql import functions as F

    quoted = ".".join("`" + part.replace("`", "``") + "`" for part in column.path)
    value = F.col(quoted)
    if column.conversion == "vector":
        from pyspark.ml.functions import vector_to_array

        return vector_to_array(value, "float32")
    return value


def _dealt(num_tasks: int) -> Any:
    """An integer by whose hash Spark sends a row to its worker."""
    from pyspark.sql import functions as F

    number = F.col("row").bitwiseAND(F.lit((1 << ROW_BITS) - 1))
    # Where in its group of n rows; the whole group is turned by the hash of group and partition.
    group = F.floor(number / F.lit(num_tasks))
    turn = F.hash(group, F.shiftright("row", ROW_BITS))
    worker = F.pmod(number + turn, F.lit(num_tasks)).cast("int")
    keys = F.array(*(F.lit(key) for key in partition_keys(num_tasks)))
    return F.element_at(keys, worker + F.lit(1))


def partition_keys(num_tasks: int) -> list[int]:
    """For each of ``num_tasks`` partitions an integer that Spark's hash partitioning sends there."""
    keys: dict[int, int] = {}
    for key in itertools.count():
        keys.setdefault(spark_hash(key) % num_tasks, key)
        if len(keys) == num_tasks:
            return [keys[partition] for partition in range(num_tasks)]
    raise AssertionError("unreachable")


def spark_hash(value: int) -> int:
    """What Spark's ``hash(int)`` gives: Murmur3 in its 32-bit form (public domain, Austin Appleby), with seed 42."""
    mask = 0xFFFFFFFF

    def turned(number: int, bits: int) -> int:
        return ((number << bits) | (number >> (32 - bits))) & mask

    mixed = turned((value & mask) * 0xCC9E2D51 & mask, 15) * 0x1B873593 & mask
    result = (turned(42 ^ mixed, 13) * 5 + 0xE6546B64) & mask
    result ^= 4  # the length in bytes
    result = (result ^ (result >> 16)) * 0x85EBCA6B & mask
    result = (result ^ (result >> 13)) * 0xC2B2AE35 & mask
    result ^= result >> 16
    return result - (1 << 32) if result >> 31 else result


def row_count(frame: Any) -> int | None:
    """How many rows Spark knows a DataFrame to have without counting them (a cached or local one, a range)."""
    plan = getattr(frame, "_jdf", None)
    if plan is None:  # Connect does not tell
        return None
    node = plan.queryExecution().optimizedPlan()
    while node.nodeName() == "Project":  # of which Spark tells the bytes alone, though it keeps the rows
        node = node.children().head()
    count = node.stats().rowCount()
    return int(str(count.get())) if count.isDefined() else None
