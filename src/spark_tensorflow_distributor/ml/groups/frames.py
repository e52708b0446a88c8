"""Builds the DataFrames that carry groups to the workers, sorted by key."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...data.columns import Column
from ...data.frames import column_expression
from ...errors import DataError
from ...inference.features import select_columns

if TYPE_CHECKING:
    from pyspark.sql import Column as SparkColumn
    from pyspark.sql import DataFrame

# Spark's types that can be compared and sent to Python one by one.
_KEY_TYPES = ("boolean", "byte", "short", "integer", "long", "float", "double", "string", "binary", "date", "timestamp")


def key_columns(df: "DataFrame", names: Sequence[str]) -> list[Column]:
    """Return the columns that form the key.

    Raises:
        DataError: One does not exist, or is of a type that cannot be a key.
    """
    columns = select_columns(df.schema.jsonValue(), names)
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
        features: The columns of features.
        others: The label, and what follows it.
        order: The columns by which the rows of a group are sorted first.
        num_tasks: The number of partitions.
    """
    import pyspark.sql.functions as F

    names = [f"k{number}" for number in range(len(keys))]
    values = [_as_trained(column) for column in features] + list(others)
    value_names = [f"v{number}" for number in range(len(values))]
    order_names = [f"o{number}" for number in range(len(order))]
    chosen = df.select(
        *(column_expression(key).alias(name) for key, name in zip(keys, names, strict=True)),
        *(value.alias(name) for value, name in zip(values, value_names, strict=True)),
        *(F.col(column).alias(name) for column, name in zip(order, order_names, strict=True)),
    )
    # A shuffle delivers rows in any order; equal hashes mean equal rows.
    ranked = chosen.withColumn("rank", F.xxhash64(*value_names))
    placed = ranked.repartition(num_tasks, *names).sortWithinPartitions(*names, *order_names, "rank")
    return placed.select(*names, *value_names)


def scored_rows(
    df: "DataFrame", keys: Sequence[Column], features: Sequence[Column], models: "DataFrame", names: Sequence[str]
) -> "DataFrame":
    """Return the rows to predict and the models, each group within one partition, its model first.

    The columns are ``k0``, ``k1``, ... (the key), ``model`` (null for the rows), ``f0``, ``f1``, ... (the features,
    null for the models) and ``row``, a struct of all columns (null for the models).

    Args:
        df: The DataFrame.
        keys: Its columns that form the key.
        features: Its columns of features.
        models: The key's columns and ``model``.
        names: The names of the key's columns in ``models``.
    """
    import pyspark.sql.functions as F

    key_names = [f"k{number}" for number in range(len(keys))]
    feature_names = [f"f{number}" for number in range(len(features))]
    rows = df.select(
        *(column_expression(key).alias(name) for key, name in zip(keys, key_names, strict=True)),
        F.lit(None).cast("binary").alias("model"),
        *(_as_trained(column).alias(name) for column, name in zip(features, feature_names, strict=True)),
        F.struct(*(F.col("`" + name.replace("`", "``") + "`") for name in df.columns)).alias("row"),
    )
    types = {field.name: field.dataType for field in rows.schema.fields}
    lines = models.where("model IS NOT NULL").select(
        *(F.col(name).cast(types[key]).alias(key) for name, key in zip(names, key_names, strict=True)),
        "model",
        *(F.lit(None).cast(types[name]).alias(name) for name in [*feature_names, "row"]),
    )
    return rows.unionAll(lines).repartition(*key_names).sortWithinPartitions(*key_names, F.col("model").isNull())


def _as_trained(column: Column) -> "SparkColumn":
    value = column_expression(column)
    if column.conversion != "vector" and column.dtype == "float64":
        value = value.cast("array<" * column.depth + "float" + ">" * column.depth)
    return value


def label_expression(column: Column) -> "SparkColumn":
    """Return a column of labels or weights as floats.

    Raises:
        DataError: It is not numeric.
    """
    if not column.is_number or column.depth > 1:
        raise DataError(f"The column {column.name!r} is of type {column.spark_type}, but a label must be a number.")
    value = column_expression(column)
    return value if column.conversion == "vector" else value.cast("array<float>" if column.depth else "float")


def check_frame(df: object) -> None:
    """Check that a DataFrame is not a stream, whose groups never end.

    Raises:
        DataError: It is one.
    """
    if getattr(df, "isStreaming", False):
        raise DataError(
            "The DataFrame is a stream, but the rows of a group must come together. Call this from foreachBatch."
        )
