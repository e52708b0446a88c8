"""Turns DataFrame arguments into the input of the barrier stage.

All DataFrames of a run travel through one stage. A union stacks them in one wide schema, in which columns of the same
type share a position; frames of the same schema therefore cost nothing, and positions that a frame has no column for
are null. One shuffle then distributes the rows over the workers.

The distribution is Spark's round robin with two differences. Each group of ``n`` consecutive rows goes to the ``n``
workers in an order that changes from group to group, so that a pattern in the rows (such as every second one being
positive) does not end up on one worker. And it is computed as a column, so that Spark does not sort each partition
first, as it does for its own round robin (SPARK-23207) to make tasks repeatable; a barrier stage repeats none.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError
from .columns import Column, columns_of
from .layout import ROW_BITS, FrameSpec

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column as SparkColumn
    from pyspark.sql import DataFrame


@dataclass(frozen=True)
class Frames:
    """The DataFrames among a run's arguments.

    Attributes:
        specs: What the agents need to know about each.
        frames: The DataFrames themselves, in the same order.
    """

    specs: tuple[FrameSpec, ...] = ()
    frames: "tuple[DataFrame, ...]" = ()

    def source(self, num_tasks: int) -> "DataFrame":
        """Return the rows of all DataFrames as one DataFrame of ``num_tasks`` partitions.

        Its columns are the row's id (see ``ROW_BITS``), the number of its frame, and those of the wide schema. The
        same rows in the same partitions are always distributed in the same way.
        """
        return self._union().repartition(num_tasks, _partition_key(num_tasks))

    def local_batches(self) -> "Iterator[pa.RecordBatch]":
        """Yield the same rows as Arrow batches in this process, partition by partition, in order."""
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

    def _union(self) -> "DataFrame":
        from pyspark.sql import functions as F

        wide = self._wide(0)
        for number in range(1, len(self.frames)):
            wide = wide.unionAll(self._wide(number))
        return wide.select(F.monotonically_increasing_id().alias("row"), "*")

    def _wide(self, number: int) -> "DataFrame":
        """Return one of the DataFrames in the wide schema."""
        from pyspark.sql import functions as F

        types = {p: c.travels_as for spec in self.specs for p, c in zip(spec.positions, spec.columns, strict=True)}
        by_position = dict(zip(self.specs[number].positions, self.specs[number].columns, strict=True))
        values = []
        for position in range(len(types)):
            column = by_position.get(position)
            value = F.lit(None) if column is None else column_expression(column)
            values.append(value.cast(types[position]).alias(f"c{position}"))
        return self.frames[number].select(F.lit(number).cast("short").alias("frame"), *values)


def frames_of(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], Frames]:
    """Separate the DataFrames from the other arguments.

    Returns:
        The arguments, in their order and with None in place of each DataFrame; and the DataFrames.

    Raises:
        DataError: A column's type has no counterpart in TensorFlow.
        ConfigurationError: A frame is a stream, or belongs to pandas on Spark.
    """
    others = dict(kwargs)
    specs: list[FrameSpec] = []
    frames: list[DataFrame] = []
    for name, value in kwargs.items():
        if type(value).__module__.startswith("pyspark.pandas."):
            raise ConfigurationError(
                f"The argument {name!r} is a {type(value).__name__} of pandas on Spark. Pass {name}.to_spark(), with "
                "index_col=... if you need its index."
            )
        if not is_dataframe(value):
            continue
        others[name] = None
        if value.isStreaming:
            raise ConfigurationError(
                f"The DataFrame {name!r} is a stream, which has no end. To train on the rows that have arrived, read "
                "its source with spark.read, or call the runner from foreachBatch."
            )
        schema = value.schema.jsonValue()
        columns = columns_of(schema, f"The DataFrame {name!r}")
        specs.append(FrameSpec(name, columns, (), schema, row_count(value)))
        frames.append(value)
    return others, Frames(assign_positions(specs), tuple(frames))


def is_dataframe(value: object) -> bool:
    """Whether the value is a Spark DataFrame, classic or Connect. Does not import PySpark."""
    return any(
        base.__module__.startswith("pyspark.sql.") and base.__name__ == "DataFrame" for base in type(value).__mro__
    )


def assign_positions(specs: Sequence[FrameSpec]) -> tuple[FrameSpec, ...]:
    """Give every column the first position in the wide schema that has its type and is free in its frame."""
    types: list[str] = []
    assigned = []
    for spec in specs:
        positions: list[int] = []
        for column in spec.columns:
            kind = column.travels_as
            free = (p for p, other in enumerate(types) if other == kind and p not in positions)
            position = next(free, len(types))
            if position == len(types):
                types.append(kind)
            positions.append(position)
        assigned.append(replace(spec, positions=tuple(positions)))
    return tuple(assigned)


def column_expression(column: Column) -> "SparkColumn":
    """Return the Spark expression that selects a column, with a vector converted to an array of floats."""
    from pyspark.sql import functions as F

    quoted = ".".join("`" + part.replace("`", "``") + "`" for part in column.path)
    value = F.col(quoted)
    if column.conversion == "vector":
        from pyspark.ml.functions import vector_to_array

        return vector_to_array(value, "float32")
    return value


def _partition_key(num_tasks: int) -> "SparkColumn":
    """Return an integer column by whose hash Spark sends each row to its worker."""
    from pyspark.sql import functions as F

    number = F.col("row").bitwiseAND(F.lit((1 << ROW_BITS) - 1))
    # The hash of group and partition rotates the workers of each group of n rows.
    group = F.floor(number / F.lit(num_tasks))
    rotation = F.hash(group, F.shiftright("row", ROW_BITS))
    worker = F.pmod(number + rotation, F.lit(num_tasks)).cast("int")
    keys = F.array(*(F.lit(key) for key in partition_keys(num_tasks)))
    return F.element_at(keys, worker + F.lit(1))


def partition_keys(num_tasks: int) -> list[int]:
    """Return for each of ``num_tasks`` partitions an integer that Spark's hash partitioning sends there."""
    keys: dict[int, int] = {}
    for key in itertools.count():
        keys.setdefault(spark_hash(key) % num_tasks, key)
        if len(keys) == num_tasks:
            break
    return [keys[partition] for partition in range(num_tasks)]


def spark_hash(value: int) -> int:
    """Compute Spark's ``hash(int)``: 32-bit Murmur3 (public domain, Austin Appleby) with seed 42."""
    mask = 0xFFFFFFFF

    def rotate(number: int, bits: int) -> int:
        return ((number << bits) | (number >> (32 - bits))) & mask

    mixed = rotate((value & mask) * 0xCC9E2D51 & mask, 15) * 0x1B873593 & mask
    result = (rotate(42 ^ mixed, 13) * 5 + 0xE6546B64) & mask
    result ^= 4  # the length in bytes
    result = (result ^ (result >> 16)) * 0x85EBCA6B & mask
    result = (result ^ (result >> 13)) * 0xC2B2AE35 & mask
    result ^= result >> 16
    return result - (1 << 32) if result >> 31 else result


def row_count(frame: "DataFrame") -> int | None:
    """Return the number of rows if Spark knows it without counting: for cached and local DataFrames, and ranges."""
    plan = getattr(frame, "_jdf", None)
    if plan is None:  # Spark Connect does not say
        return None
    node = plan.queryExecution().optimizedPlan()
    while node.nodeName() == "Project":  # it keeps the rows, but Spark only reports its bytes
        node = node.children().head()
    count = node.stats().rowCount()
    return int(str(count.get())) if count.isDefined() else None
