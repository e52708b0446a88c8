"""Checks of columns, and the metadata of classes. A schema needs no JVM."""

from types import SimpleNamespace

import pytest
from pyspark.ml.linalg import VectorUDT
from pyspark.sql.types import ArrayType, DoubleType, FloatType, StringType, StructField, StructType

from spark_tensorflow_distributor import DataError
from spark_tensorflow_distributor.ml import KerasRegressor
from spark_tensorflow_distributor.ml.columns import (
    check_is_frame,
    check_label,
    check_weight,
    class_count,
    class_metadata,
    class_names,
    known_columns,
)


def frame(**columns):
    fields = [
        StructField(name, kind, metadata={"ml_attr": attributes} if attributes else None)
        for name, (kind, attributes) in columns.items()
    ]
    return SimpleNamespace(schema=StructType(fields), columns=list(columns))


def test_the_metadata_of_a_label_names_and_counts_its_classes():
    indexed = {"type": "nominal", "vals": ["a", "b", "c"], "name": "index"}
    df = frame(
        index=(DoubleType(), indexed),
        counted=(DoubleType(), {"type": "nominal", "num_vals": 4}),
        binary=(DoubleType(), {"type": "binary"}),
        single=(DoubleType(), {"type": "nominal", "vals": ["a"]}),
        plain=(DoubleType(), None),
    )
    assert class_names(df, "index") == ["a", "b", "c"]
    assert class_names(df, "counted") is None
    assert [class_count(df, name) for name in df.columns] == [3, 4, 2, 2, None]
    # What a model's prediction says is what IndexToString reads.
    assert class_metadata(3, ["a", "b", "c"]) == {"ml_attr": {"type": "nominal", "vals": ["a", "b", "c"]}}
    assert class_metadata(3, None) == {"ml_attr": {"type": "nominal", "num_vals": 3}}
    assert class_metadata(None, None) == {"ml_attr": {"type": "nominal"}}


def test_columns_are_found_by_param():
    df = frame(features=(VectorUDT(), None), label=(DoubleType(), None), text=(StringType(), None))
    found = known_columns(df, {"featuresCol": "features", "labelCol": "label", "weightCol": None})
    assert {name: (column.dtype, column.depth) for name, column in found.items()} == {
        "features": ("float32", 1),
        "label": ("float64", 0),
    }
    with pytest.raises(DataError, match=r"weightCol names the column 'lable', .*did you mean 'label'"):
        known_columns(df, {"weightCol": "lable"})
    with pytest.raises(DataError, match=r"inputCols names the column 'x'.*Its columns are features, label, text\."):
        known_columns(df, {"inputCols": ["text", "x"]})
    other = frame(late=(DoubleType(), None), label=(DoubleType(), None))
    with pytest.raises(DataError, match=r"does not have\. Its columns are late, label\. .*inputCols.*VectorAssembler"):
        known_columns(other, {"featuresCol": "features"})


def test_only_spark_dataframes_have_rows():
    import pandas as pd

    with pytest.raises(DataError, match=r"The rows are a pandas DataFrame; .* \(spark\.createDataFrame\)"):
        check_is_frame(pd.DataFrame({"a": [1]}))
    with pytest.raises(DataError, match="The rows are a list; they must be a Spark DataFrame"):
        check_is_frame([1])


def test_labels_are_numbers():
    df = frame(
        text=(StringType(), None), many=(ArrayType(FloatType()), None), vector=(VectorUDT(), None),
        deep=(ArrayType(ArrayType(FloatType())), None), number=(DoubleType(), None),
    )  # fmt: skip
    columns = known_columns(df, {"labelCol": df.columns})
    for name in ("many", "vector", "number"):
        check_label(columns[name], "labelCol", is_classifier=False)
    check_label(columns["number"], "labelCol", is_classifier=True)
    for name in ("text", "deep"):
        with pytest.raises(DataError, match="must be a number"):
            check_label(columns[name], "labelCol", is_classifier=False)
    with pytest.raises(DataError, match="A classifier's label is one number"):
        check_label(columns["vector"], "labelCol", is_classifier=True)


def test_rows_must_be_a_dataframe_of_spark():
    with pytest.raises(DataError, match=r"The rows are a list; they must be a Spark DataFrame"):
        KerasRegressor(modelFn=len).fit([1])
    with pytest.raises(DataError, match=r"weightCol is 'x', a column of type string. A row's weight is one number"):
        check_weight(known_columns(frame(x=(StringType(), None)), {"weightCol": "x"})["x"])
