"""Turns DataFrame arguments into the input of the barrier stage.

All DataFrames of a run travel through one stage. A union stacks them in one wide schema, in which columns of the same
type share a position. Frames with the same schema therefore add no positions, and positions for which a frame has no
column are null. One shuffle then distributes the rows over the workers.

The distribution is Spark's round robin with two differences. Each group of ``n`` consecutive rows goes to the ``n``
workers in an order that changes from group to group, so that rows that follow a pattern (such as every second one being
positive) do not all reach the same worker. And it is computed as a column, so that Spark does not sort each partition
first, which it does for its own round robin to make tasks repeatable (SPARK-23207); a barrier stage never retries
single tasks.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, DataError
from ..formatting import a_type
from .columns import Column, columns_of, quoted
from .layout import ROW_BITS, FrameSpec

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column as SparkColumn
    from pyspark.sql import DataFrame

# "id#12L", "plan_id=7", "VectorAssembler_0123456789ab", "Some$$Lambda/0x00007f@1b2c3d"
_SPARKS_NUMBERS = re.compile(r"#\d+L?|\bplan_id=\d+|_[0-9a-f]{12}(?![0-9a-f])|\$\$?Lambda\S*|@[0-9a-f]{4,8}\b")


@dataclass(frozen=True)
class Frames:
    """The DataFrames among a run's arguments.

    Attributes:
        specs: What the agents need to know about each DataFrame.
        frames: The DataFrames themselves, in the same order.
    """

    specs: tuple[FrameSpec, ...] = ()
    frames: "tuple[DataFrame, ...]" = ()

    def source(self, num_tasks: int) -> "DataFrame":
        """Return the rows of all DataFrames as one DataFrame of ``num_tasks`` partitions.

        Its columns are the row's id (see ``ROW_BITS``), the number of the row's frame, and a struct of the wide
        schema's columns, because ``mapInArrow`` takes time that is quadratic in the number of columns. The same rows in
        the same partitions are always distributed in the same way.
        """
        return self._union().repartition(num_tasks, _partition_key(num_tasks))

    def local_batches(self) -> "Iterator[pa.RecordBatch]":
        """Yield the same rows in this process, as Arrow batches, partition by partition and in order."""
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
        spec, frame = self.specs[number], self.frames[number]
        expressions = {position: f"CAST(NULL AS {kind})" for position, kind in types.items()}
        for position, column in zip(spec.positions, spec.columns, strict=True):
            if column.conversion == "vector":  # SQL has no function for it
                name = f"spark_tensorflow_distributor_vector_{position}"
                frame = frame.withColumn(name, column_expression(column))
                expressions[position] = name
            else:
                expressions[position] = f"CAST({quoted_path(column)} AS {column.travels_as})"
        # One SQL text for all columns: as PySpark objects, each column would take several calls to the JVM.
        fields = ", ".join(f"{expressions[position]} AS c{position}" for position in range(len(types)))
        return frame.select(F.lit(number).cast("short").alias("frame"), F.expr(f"struct({fields})").alias("columns"))


def plan_text(df: "DataFrame") -> str:
    """Return a DataFrame's analysed plan as text, which is the same for the same DataFrame in another session.

    Spark's expression numbers and the random ids of ``pyspark.ml`` objects are replaced by numbers in order of
    appearance. The text shows neither the code of Python functions nor rows that come from this process.
    """
    if hasattr(df, "_jdf"):
        text = str(df._jdf.queryExecution().analyzed().toString())
    else:
        explained = df._explain_string(extended=True)  # type: ignore[operator]
        text = explained.partition("== Analyzed Logical Plan ==")[2].partition("== Optimized Logical Plan ==")[0]
    numbers: dict[str, str] = {}
    return _SPARKS_NUMBERS.sub(lambda found: numbers.setdefault(found[0].rstrip("L"), f"<{len(numbers)}>"), text)


def frames_of(kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], Frames]:
    """Separate the DataFrames from the other arguments.

    Returns:
        The arguments, in the same order and with None in place of each DataFrame; and the DataFrames.

    Raises:
        DataError: If a column's type has no counterpart in TensorFlow, or a list, tuple, set or dict contains
            DataFrames.
        ConfigurationError: If a frame is a stream, or belongs to pandas on Spark.
    """
    others = dict(kwargs)
    specs: list[FrameSpec] = []
    frames: list[DataFrame] = []
    for name, value in kwargs.items():
        _refuse_container(name, value)
        if is_pandas_on_spark(value):
            raise ConfigurationError(
                f"The argument {name!r} is {a_type(value)} of pandas on Spark. Pass {name}.to_spark(), with "
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
        specs.append(FrameSpec(name, columns, (), schema, expected_rows(value)))
        frames.append(value)
    return others, Frames(assign_positions(specs), tuple(frames))


def _refuse_container(name: str, value: object) -> None:
    """Reject DataFrames in a container: only a DataFrame that is itself an argument becomes a ``DataShard``."""
    if not isinstance(value, list | tuple | set | Mapping):
        return
    items = value.values() if isinstance(value, Mapping) else value
    if not any(map(is_dataframe, {type(each): each for each in items}.values())):  # once per type: lists may be long
        return
    if isinstance(value, Mapping):
        names = [str(key) if str(key).isidentifier() else f"{name}_{number}" for number, key in enumerate(value, 1)]
    else:
        names = [f"{name}_{number}" for number in range(1, len(value) + 1)]
    arguments = ", ".join(f"{each}=..." for each in names[:5]) + (", ..." if len(names) > 5 else "")
    raise DataError(
        f"The argument {name!r} is {a_type(value)} that contains Spark DataFrames. Pass each of them as an argument of "
        f"its own, such as run(train, {arguments}); or combine frames of the same columns in Spark "
        "(df1.unionByName(df2))."
    )


def is_pandas_on_spark(value: object) -> bool:
    """Return whether a value belongs to pandas on Spark, without importing it."""
    return type(value).__module__.startswith("pyspark.pandas.")


def is_dataframe(value: object) -> bool:
    """Return whether a value is a Spark DataFrame, classic or Connect, without importing PySpark."""
    return any(
        base.__module__.startswith("pyspark.sql.") and base.__name__ == "DataFrame" for base in type(value).__mro__
    )


def assign_positions(specs: Sequence[FrameSpec]) -> tuple[FrameSpec, ...]:
    """Assign every column the first position of its type in the wide schema that is still free in its frame."""
    by_type: dict[str, list[int]] = {}
    width = itertools.count()
    assigned = []
    for spec in specs:
        used: Counter[str] = Counter()
        positions: list[int] = []
        for column in spec.columns:
            of_type = by_type.setdefault(column.travels_as, [])
            if used[column.travels_as] == len(of_type):
                of_type.append(next(width))
            positions.append(of_type[used[column.travels_as]])
            used[column.travels_as] += 1
        assigned.append(replace(spec, positions=tuple(positions)))
    return tuple(assigned)


def column_expression(column: Column) -> "SparkColumn":
    """Return the Spark expression that selects a column, with a vector converted to an array of floats."""
    from pyspark.sql import functions as F

    value = F.col(quoted_path(column))
    if column.conversion == "vector":
        from pyspark.ml.functions import vector_to_array

        # vector_to_array fails on nulls; as null arrays, they are counted and reported with the column's name.
        return F.when(value.isNotNull(), vector_to_array(value, "float32"))
    return value


def quoted_path(column: Column) -> str:
    """Return the column's name, quoted for SQL."""
    return ".".join(map(quoted, column.path))


def _partition_key(num_tasks: int) -> "SparkColumn":
    """Return an integer column whose hash determines the worker of each row."""
    from pyspark.sql import functions as F

    number = F.col("row").bitwiseAND(F.lit((1 << ROW_BITS) - 1))
    # A hash of group and partition rotates the order of the workers for each group of num_tasks rows.
    group = F.floor(number / F.lit(num_tasks))
    rotation = F.hash(group, F.shiftright("row", ROW_BITS))
    worker = F.pmod(number + rotation, F.lit(num_tasks)).cast("int")
    keys = F.array(*(F.lit(key) for key in partition_keys(num_tasks)))
    return F.element_at(keys, worker + F.lit(1))


def partition_keys(num_tasks: int) -> list[int]:
    """Return, for each of ``num_tasks`` partitions, an integer that Spark's hash partitioning sends there."""
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


def expected_rows(frame: "DataFrame") -> int | None:
    """Return the number of rows if Spark knows it without counting (cached or local data, ranges); otherwise None."""
    plan = getattr(frame, "_jdf", None)
    if plan is None:  # Spark Connect does not expose the plan
        return None
    node = plan.queryExecution().optimizedPlan()
    while node.nodeName() == "Project":  # it keeps all rows, but Spark reports only its size in bytes
        node = node.children().head()
    count = node.stats().rowCount()
    return int(str(count.get())) if count.isDefined() else None
