"""Selects and checks the columns of a training, and builds those of predictions; metadata as ``pyspark.ml`` has it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..data.columns import Column, nearest
from ..data.frames import column_expression, is_dataframe, is_pandas_on_spark
from ..errors import DataError
from ..formatting import a_type
from ..inference.features import select_columns

if TYPE_CHECKING:
    from pyspark.sql import Column as SparkColumn
    from pyspark.sql import DataFrame


_FEATURES_ADVICE = (
    " Name the columns of the features in inputCols; or set featuresCol to a column of vectors or arrays, such as "
    "VectorAssembler of pyspark.ml makes."
)


def check_is_frame(value: object) -> None:
    """Check that a value is a Spark DataFrame.

    Raises:
        DataError: The value is something else.
    """
    if is_pandas_on_spark(value):
        raise DataError(f"The rows are {a_type(value)} of pandas on Spark. Pass its to_spark().")
    if not is_dataframe(value):
        what = a_type(value)
        if type(value).__module__.startswith("pandas."):
            what = f"a pandas {type(value).__name__}"
        raise DataError(f"The rows are {what}; they must be a Spark DataFrame (spark.createDataFrame).")


def known_columns(df: "DataFrame", params: Mapping[str, str | Sequence[str] | None]) -> dict[str, Column]:
    """Return the columns that Params name, by their names.

    Args:
        df: The DataFrame.
        params: The names by the Param that holds them; None for a Param that is not set.

    Raises:
        DataError: There is no such column, or TensorFlow has no equivalent for its type.
    """
    schema = df.schema.jsonValue()
    found: dict[str, Column] = {}
    for param, names in params.items():
        for name in [names] if isinstance(names, str) else names or ():
            check_exists(df, param, name)
            found.update({column.name: column for column in select_columns(schema, [name], param)})
    return found


def check_exists(df: "DataFrame", param: str, name: str) -> None:
    """Check that a DataFrame has a column, or one that may be a struct with such a field.

    Raises:
        DataError: There is no such column.
    """
    if not any(name == known or name.startswith(f"{known}.") for known in df.columns):
        raise DataError(
            f"{param} names the column {name!r}, which the DataFrame does not have{nearest(name, df.columns)}. "
            f"Its columns are {', '.join(df.columns[:20])}{', ...' if len(df.columns) > 20 else ''}."
            f"{_FEATURES_ADVICE if param == 'featuresCol' else f' Correct {param}.'}"
        )


def check_label(column: Column, param: str, *, is_classifier: bool) -> None:
    """Check the type of a label column.

    Raises:
        DataError: The column is not numeric, or is a classifier's and holds arrays.
    """
    if not column.is_number or column.depth > 1:
        raise DataError(
            f"{param} is {column.name!r}, a column of type {column.spark_type}. A label must be a number: index "
            "strings with StringIndexer of pyspark.ml."
        )
    if is_classifier and column.depth:
        raise DataError(
            f"{param} is {column.name!r}, a column of type {column.spark_type}. A classifier's label is one number, "
            "the index of the class. For several numbers per row, use KerasRegressor."
        )


def check_weight(column: Column) -> None:
    """Check the type of a weight column.

    Raises:
        DataError: The column does not hold one number per row.
    """
    if not column.is_number or column.depth:
        raise DataError(
            f"weightCol is {column.name!r}, a column of type {column.spark_type}. A row's weight is one number; clear "
            "weightCol if all rows weigh the same."
        )


def training_frame(df: "DataFrame", columns: Mapping[str, Column], as_float: Sequence[str]) -> "DataFrame":
    """Return a DataFrame of these columns alone: vectors as arrays, doubles and decimals as floats.

    Args:
        df: The DataFrame.
        columns: The columns by name.
        as_float: Names of columns that become floats whatever their numeric type is.
    """
    return df.select(
        *(trained_column(column, is_float=name in as_float).alias(name) for name, column in columns.items())
    )


def trained_column(column: Column, *, is_float: bool = False) -> "SparkColumn":
    """Return a column as models take it: vectors as arrays, doubles and decimals as floats.

    Args:
        column: The column.
        is_float: Whether it becomes floats whatever its numeric type is.
    """
    value = column_expression(column)
    if column.conversion == "vector":
        return value
    if column.dtype == "float64" or is_float:
        value = value.cast("array<" * column.depth + "float" + ">" * column.depth)
    return value


def split_by(df: "DataFrame", indicator: str) -> "tuple[DataFrame, DataFrame]":
    """Return the rows for training and those for validation.

    Args:
        df: The DataFrame.
        indicator: The boolean column that is true for validation.

    Raises:
        DataError: There is no such column, or it is not boolean.
    """
    import pyspark.sql.functions as F

    value = indicator_expression(df, indicator)
    text = F.lit(f"The validation indicator column {indicator!r} contains null; it must be true or false.")
    is_validation = F.coalesce(value, F.raise_error(text).cast("boolean"))
    return df.where(~is_validation), df.where(is_validation)


def indicator_expression(df: "DataFrame", indicator: str) -> "SparkColumn":
    """Return the column that is true for validation rows.

    Raises:
        DataError: There is no such column, or it is not boolean.
    """
    column = known_columns(df, {"validationIndicatorCol": indicator})[indicator]
    if column.dtype != "bool" or column.depth:
        raise DataError(
            f"validationIndicatorCol is {indicator!r}, a column of type {column.spark_type}; it must be boolean: true "
            "for validation rows."
        )
    return column_expression(column)


def class_names(df: "DataFrame", label: str) -> list[str] | None:
    """Return the names of the classes that metadata gives, such as StringIndexer's; None if there are none."""
    values = _label_attributes(df, label).get("vals")
    return None if values is None else [str(each) for each in values]


def class_count(df: "DataFrame", label: str) -> int | None:
    """Return the number of classes that metadata gives, at least 2; None if it does not."""
    attributes = _label_attributes(df, label)
    if attributes.get("type") == "binary":
        return 2
    count = len(attributes["vals"]) if "vals" in attributes else attributes.get("num_vals")
    return None if count is None else max(int(count), 2)


def _label_attributes(df: "DataFrame", label: str) -> Mapping[str, Any]:
    for field in df.schema.fields:
        if field.name == label:
            return (field.metadata or {}).get("ml_attr") or {}
    return {}


def count_classes(df: "DataFrame", label: Column) -> int | None:
    """Compute the largest label plus one, at least 2; None if there are no rows.

    Raises:
        DataError: The largest label is negative or infinite, or NaN, which is greater than all numbers in Spark.
    """
    import pyspark.sql.functions as F

    row = df.agg(F.max(column_expression(label)).alias("most")).first()
    most = None if row is None else row["most"]
    if most is not None and (not math.isfinite(most) or most < 0):
        raise DataError(
            f"The label column {label.name!r} contains {most:g}; a classifier's labels are whole numbers from 0. Drop "
            "these rows, or replace the value."
        )
    return None if most is None else max(int(most) + 1, 2)


def class_metadata(count: int | None, names: Sequence[str] | None) -> dict[str, Any]:
    """Return the metadata of a column of predicted classes, from which IndexToString takes their names."""
    attributes: dict[str, Any] = {"type": "nominal"}
    if names is not None:
        attributes["vals"] = list(names)
    elif count is not None:
        attributes["num_vals"] = count
    return {"ml_attr": attributes}


def probabilities_of(output: "SparkColumn", width: int | None, *, are_logits: bool) -> "SparkColumn":
    """Return the probabilities of all classes, an array of doubles, from a model's output."""
    import pyspark.sql.functions as F

    if width == 1:
        positive = F.lit(1.0) / (F.lit(1.0) + F.exp(-output)) if are_logits else output
        return F.array(F.lit(1.0) - positive, positive)
    if not are_logits:
        return output
    powers = _with_value(F.array_max(output), lambda most: F.transform(output, lambda each: F.exp(each - most)))

    def shares(powers: "SparkColumn") -> "SparkColumn":
        total = F.aggregate(powers, F.lit(0.0), lambda sum_, each: sum_ + each)
        return _with_value(total, lambda total: F.transform(powers, lambda each: each / total))

    return _with_value(powers, shares)


def _with_value(value: "SparkColumn", use: "Callable[[SparkColumn], SparkColumn]") -> "SparkColumn":
    """Return ``use(value)`` with the value computed once per row; in a lambda, Spark computes it for each element."""
    import pyspark.sql.functions as F

    return F.element_at(F.transform(F.array(value), use), 1)


def raw_of(output: "SparkColumn", width: int | None, *, are_logits: bool) -> "SparkColumn":
    """Return the confidence in each class, an array of doubles: the model's own output, logits or probabilities."""
    import pyspark.sql.functions as F

    if width != 1:
        return output
    return F.array(-output if are_logits else F.lit(1.0) - output, output)


def most_probable(probabilities: "SparkColumn", thresholds: Sequence[float] | None) -> "SparkColumn":
    """Return the class whose probability, divided by its threshold, is the largest, as a double."""
    import pyspark.sql.functions as F

    if thresholds is not None:
        limits = F.array(*(F.lit(float(each)) for each in thresholds))
        # As in pyspark.ml, a class with threshold 0 wins if its probability is above 0.
        probabilities = F.zip_with(
            probabilities,
            limits,
            lambda each, limit: F.when(limit > 0, each / limit).when(each > 0, F.lit(float("inf"))).otherwise(0.0),
        )
    # In PySpark 3.5, the value that F.array_position looks for cannot be a column.
    position = F.call_function("array_position", probabilities, F.array_max(probabilities))
    return (position - F.lit(1)).cast("double")
