"""Builds the DataFrames that carry groups to the workers, sorted by key."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...data.columns import Column, quoted
from ...data.frames import column_expression, quoted_path
from ...errors import DataError
from ...inference.features import select_columns
from ..columns import trained_column

if TYPE_CHECKING:
    from pyspark.sql import Column as SparkColumn
    from pyspark.sql import DataFrame

# Spark's types that can be compared and sent to Python one by one.
_KEY_TYPES = ("boolean", "byte", "short", "integer", "long", "float", "double", "string", "binary", "date", "timestamp")


def key_columns(df: "DataFrame", names: Sequence[str]) -> list[Column]:
    """Return the columns that form the key.

    Raises:
        DataError: A column does not exist, or is of a type that cannot be a key.
    """
    columns = select_columns(df.schema.jsonValue(), names, "groupCol")
    for column in columns:
        if column.depth or not column.spark_type.startswith((*_KEY_TYPES, "decimal", "char", "varchar")):
            raise DataError(
                f"groupCol names {column.name!r}, a column of type {column.spark_type}; a key must be a text, a "
                "number, a date or a timestamp."
            )
    return columns


def training_rows(
    df: "DataFrame",
    keys: Sequence[Column],
    features: Sequence[Column],
    others: "Sequence[SparkColumn]",
    order: Sequence[str],
    num_tasks: int,
) -> "DataFrame":
    """Return the rows to train on, each group within one partition and in an order that the rows alone determine.

    Args:
        df: The DataFrame.
        keys: The columns that form the key.
        features: The feature columns.
        others: The label, and what follows it.
        order: The columns by which the rows of a group are sorted first.
        num_tasks: The number of partitions.
    """
    import pyspark.sql.functions as F

    names = [f"k{number}" for number in range(len(keys))]
    values = [trained_column(column) for column in features] + list(others)
    value_names = [f"v{number}" for number in range(len(values))]
    order_names = [f"o{number}" for number in range(len(order))]
    chosen = df.select(
        *(column_expression(key).alias(name) for key, name in zip(keys, names, strict=True)),
        *(value.alias(name) for value, name in zip(values, value_names, strict=True)),
        *(_named(df, column).alias(name) for column, name in zip(order, order_names, strict=True)),
    )
    # A shuffle delivers rows in any order; equal hashes mean equal rows.
    ranked = chosen.withColumn("rank", F.xxhash64(*value_names))
    placed = ranked.repartition(num_tasks, *names).sortWithinPartitions(*names, *order_names, "rank")
    return placed.select(*names, *value_names)


def scored_rows(
    df: "DataFrame",
    keys: Sequence[Column],
    features: Sequence[Column],
    models: "DataFrame",
    names: Sequence[str],
    integers: Sequence[str] = (),
) -> "DataFrame":
    """Return the rows to predict and the models, each group within one partition, its model first.

    The columns are ``k0``, ``k1``, ... (the key, in the types of the models' keys), ``is_known`` (false for rows whose
    key these types cannot hold), ``model`` (null for the rows), ``f0``, ``f1``, ... (the features, null for the
    models) and ``row``, a struct of all columns (null for the models).

    Args:
        df: The DataFrame.
        keys: Its columns that form the key.
        features: Its feature columns.
        models: The key's columns and ``model``.
        names: The names of the key's columns in ``models``.
        integers: See :func:`integer_types`.
    """
    import pyspark.sql.functions as F

    key_names = [f"k{number}" for number in range(len(keys))]
    value_names = [f"f{number}" for number in range(len(features))]
    kinds = {field.name: field.dataType.simpleString() for field in models.schema.fields}
    converted = [_converted(key, kinds[name]) for key, name in zip(keys, names, strict=True)]
    is_known = F.lit(True)
    for _, is_exact in converted:
        is_known = is_known & is_exact
    values = [trained_column(column) for column in features]
    for number, kind in enumerate(integers):
        values[number] = values[number].cast("string") if kind else values[number]
    rows = df.select(
        *(value.alias(name) for (value, _), name in zip(converted, key_names, strict=True)),
        is_known.alias("is_known"),
        F.lit(None).cast("binary").alias("model"),
        *(value.alias(name) for value, name in zip(values, value_names, strict=True)),
        F.struct(*(F.col(quoted(name)) for name in df.columns)).alias("row"),
    )
    types = {field.name: field.dataType for field in rows.schema.fields}
    lines = models.where("model IS NOT NULL").select(
        *(F.col(quoted(name)).alias(key) for name, key in zip(names, key_names, strict=True)),
        F.lit(True).alias("is_known"),
        "model",
        *(F.lit(None).cast(types[name]).alias(name) for name in [*value_names, "row"]),
    )
    placed = rows.unionAll(lines).repartition(*key_names)
    return placed.sortWithinPartitions(*key_names, "is_known", F.col("model").isNull())


def _converted(key: Column, kind: str) -> "tuple[SparkColumn, SparkColumn]":
    """Return a column in another type, null where that is impossible; and whether each value is preserved.

    Text is read as the other type. Other values must not change: 1.5 is not a whole number.
    """
    import pyspark.sql.functions as F

    value = column_expression(key)
    if key.spark_type in (kind, _LONG_NAMES.get(kind, kind)):
        return value, F.lit(True)
    path = quoted_path(key)
    text = f"try_cast({path} AS {kind})"
    is_text = key.spark_type.startswith(("string", "char", "varchar"))
    back = f"{text} IS NOT NULL" if is_text else f"try_cast({text} AS {_spark_name(key)}) <=> {path}"
    return F.expr(text), F.expr(f"coalesce({path} IS NULL OR {back}, false)")


def _spark_name(key: Column) -> str:
    names = {long: short for short, long in _LONG_NAMES.items()}
    return names.get(key.spark_type, key.spark_type)


# Types by their names in SQL, where those of the schema's JSON differ.
_LONG_NAMES = {"tinyint": "byte", "smallint": "short", "int": "integer", "bigint": "long"}


def key_texts(rows: "DataFrame", count: int) -> "list[SparkColumn]":
    """Return the key's columns of :func:`scored_rows` as text, different for different keys.

    A user-defined function that is based on pandas would get whole numbers as float64 if there are nulls.
    """
    import pyspark.sql.functions as F

    found = []
    for number in range(count):
        kind, value = rows.schema[f"k{number}"].dataType.typeName(), F.col(f"k{number}")
        if kind in ("float", "double"):
            value = value + F.lit(0).cast(kind)  # Spark takes -0.0 for 0.0
        elif kind == "timestamp":
            value = F.unix_micros(value)  # an hour occurs twice when summer time ends
        elif kind == "binary":
            value = F.hex(value)
        found.append(value.cast("string"))
    return found


def integer_types(features: Sequence[Column]) -> tuple[str, ...]:
    """Return Arrow's types of the features that travel as text: whole numbers, where functions are based on pandas."""
    import pyspark.sql.functions as F

    if hasattr(F, "arrow_udf"):
        return ("",) * len(features)
    return tuple(each.dtype if each.spark_type in _LONG_NAMES.values() else "" for each in features)


def _named(df: "DataFrame", name: str) -> "SparkColumn":
    """Return the column of any type that has this name, or the field of a struct."""
    import pyspark.sql.functions as F

    return F.col(quoted(name) if name in df.columns else name)


def label_expression(column: Column) -> "SparkColumn":
    """Return a label or weight column as floats.

    Raises:
        DataError: The column is not numeric.
    """
    if not column.is_number or column.depth > 1:
        raise DataError(f"The column {column.name!r} is of type {column.spark_type}, but a label must be a number.")
    return trained_column(column, is_float=True)


def check_frame(df: object) -> None:
    """Check that a DataFrame is not a stream, whose groups never end.

    Raises:
        DataError: The DataFrame is a stream.
    """
    if getattr(df, "isStreaming", False):
        raise DataError(
            "The DataFrame is a stream, but the rows of a group must come together. Call this from foreachBatch."
        )
