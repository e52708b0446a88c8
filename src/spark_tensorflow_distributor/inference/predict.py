"""``predict`` and ``predict_udf``: add a column with a model's predictions. Runs on the driver."""

import itertools
import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import errors
from ..data.columns import Column, by_column
from ..data.frames import column_expression, is_dataframe, is_pandas_on_spark
from ..errors import ConfigurationError, DataError, SerializationError
from ..formatting import a_type, mebibytes
from ..runtime.driver.spark import CONNECT_LIMIT, active_session, is_connect
from ..runtime.shipping import shipped
from .features import check_stackable, feature_names, select_columns
from .model import PackedModel, pack
from .worker import Broadcast, PredictSpec

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column as SparkColumn
    from pyspark.sql import DataFrame
    from pyspark.sql.types import DataType

    Body = Callable[[Iterator[Any]], Iterator[pa.Array]]

# Larger models are broadcast.
_MAX_INLINE = 1 << 20


def predict(
    df: "DataFrame",
    model: Any,
    feature_columns: str | Sequence[str],
    *,
    stack: bool = False,
    output_column: str = "prediction",
    batch_size: int = 4096,
    output_type: "str | DataType | None" = None,
    fill_value: Any = None,
    custom_objects: Mapping[str, Any] | None = None,
    safe_mode: bool = True,
    gpu_resource_name: str = "gpu",
) -> "DataFrame":
    """Return a DataFrame with an additional column that holds a model's predictions.

    The predictions are computed lazily, on the cluster, when the result is used. All other columns, the partitions and
    the order of the rows stay unchanged, and columns that are not features never leave the JVM. Executors need
    TensorFlow, but not this library. Filter rows before calling this function, because Spark does not move a later
    filter in front of the predictions.

    Args:
        df: A DataFrame of classic Spark or Spark Connect, batch or streaming. A streaming DataFrame requires
            ``output_type`` if the model does not declare the shapes of its inputs.
        model: A Keras model (Keras 3 or tf_keras), or the path of a saved model on the driver: a ``.keras`` or ``.h5``
            file, or a SavedModel directory. A URL such as ``gs://bucket/model.keras`` is read by TensorFlow on the
            executors.
        feature_columns: A name or a list of names; ``outer.inner`` is a field of a struct. With one name, the model
            gets a tensor ``[batch]``, or ``[batch, k]`` for arrays and vectors; with a list, it gets one tensor per
            name. Rows are reshaped to the model's input if the number of values fits. Arrays of different lengths
            become a ``tf.RaggedTensor``.
        stack: Whether to put all columns (numbers, flat arrays and vectors) side by side in one float32 tensor
            ``[batch, k]``. Default: False.
        output_column: Name of the new column, which replaces any existing column of that name. Default:
            ``"prediction"``.
        batch_size: Maximum number of rows per call of the model. Default: 4096.
        output_type: Spark type of the column, as a DDL string or a ``DataType``. By default, it is derived from the
            model's output: ``[batch]`` and ``[batch, 1]`` become scalars, ``[batch, k]`` arrays, and several outputs a
            struct.
        fill_value: The value that replaces nulls, including nulls inside flat arrays but not null arrays, or a dict of
            values by column. Default: nulls raise an error.
        custom_objects: Custom classes and functions that a saved model uses, by name; not needed for a model object.
        safe_mode: Whether Keras refuses to run Python code in a ``.keras`` file (``Lambda`` layers); model objects are
            always trusted. Default: True.
        gpu_resource_name: Name of the resource through which Spark assigns GPUs to tasks; tasks without a GPU use the
            CPU. Default: ``"gpu"``.

    Raises:
        ConfigurationError: If an argument is invalid, or the model does not exist.
        DataError: If ``df`` is not a Spark DataFrame, a column is missing, the features do not fit the model, or the
            type of a column or of the model's output has no equivalent.
        SerializationError: If the model cannot be saved or loaded, or is too large for Spark Connect.
        ClusterError: If the executors do not have TensorFlow.
    """
    _check(batch_size, output_column)
    _check_frame(df)
    names = feature_names(feature_columns)
    columns = select_columns(df.schema.jsonValue(), names)
    arguments, values = _arguments(columns, by_column("fill_value", fill_value, names), stack)
    model_spec, data = pack(model, custom_objects, safe_mode)
    spec = PredictSpec(
        model_spec, arguments, isinstance(feature_columns, str), stack, batch_size, gpu_resource_name,
        has_fill_value=not isinstance(model, PackedModel),  # which is what a model of pyspark.ml passes
    )  # fmt: skip
    payload = payload_of(df.sparkSession, data)
    sample = None if df.isStreaming else df.select(*(v.alias(f"c{i}") for i, v in enumerate(values)))
    kind = _output_type(df.sparkSession, output_type, model, spec, payload, sample)
    # Spark evaluates a deterministic function again for each use of its column, for example in a filter.
    return _as_rows(df).withColumn(output_column, _udf(spec, payload, kind).asNondeterministic()(*values))


def _as_rows(df: "DataFrame") -> "DataFrame":
    """Return the same rows, but if there are user-defined types, make Spark process them row by row.

    With a columnar source such as Parquet, Spark 4.3 converts all columns, even those that the function does
    not take, and fails on vectors. A filter works on rows; this one lets all of them pass.
    """
    if '"udt"' not in df.schema.json():
        return df
    import pyspark.sql.functions as F

    return df.where(F.spark_partition_id() >= F.lit(0))  # not deterministic for Spark, which keeps it


def predict_udf(
    model: Any,
    feature_columns: str | Sequence[str] | None = None,
    *,
    stack: bool = False,
    batch_size: int = 4096,
    output_type: "str | DataType | None" = None,
    custom_objects: Mapping[str, Any] | None = None,
    safe_mode: bool = True,
    gpu_resource_name: str = "gpu",
    spark: Any = None,
) -> Any:
    """Return a model as a function of columns, for ``select``, ``withColumn`` and, after ``spark.udf.register``, SQL.

    The result is an ordinary user-defined function of Spark. Spark considers it deterministic, so it may compute a
    column again for each use; ``asNondeterministic()`` prevents that. Wrap vector arguments in ``vector_to_array`` and
    nullable arguments in ``coalesce``, and pass structs field by field.

    Args:
        model: See :func:`predict`.
        feature_columns: Names for the arguments, in order: the names of the model's inputs, or of columns. A single
            name stands for one argument, which becomes the model's only tensor. Default: no names; a single argument
            becomes the model's only tensor, and several arguments become the model's inputs in order.
        stack: See :func:`predict`; applies to all arguments.
        batch_size: See :func:`predict`.
        output_type: See :func:`predict`. Required if the model does not declare the shapes of its inputs.
        custom_objects: See :func:`predict`.
        safe_mode: See :func:`predict`.
        gpu_resource_name: See :func:`predict`.
        spark: The ``SparkSession``. Default: the active session.

    Raises:
        ConfigurationError, DataError, SerializationError, ClusterError: See :func:`predict`.
    """
    _check(batch_size, "prediction")
    names = () if feature_columns is None else feature_names(feature_columns)
    session = active_session(spark)
    model_spec, data = pack(model, custom_objects, safe_mode)
    arguments = tuple((name,) for name in names)
    spec = PredictSpec(model_spec, arguments, isinstance(feature_columns, str), stack, batch_size, gpu_resource_name)
    payload = payload_of(session, data)
    return _udf(spec, payload, _output_type(session, output_type, model, spec, payload, None))


def _check(batch_size: object, output_column: object) -> None:
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ConfigurationError(f"batch_size is {batch_size!r}; it must be a number of rows of at least 1.")
    if not isinstance(output_column, str) or not output_column:
        raise ConfigurationError(f"output_column is {output_column!r}; it must be the name of a column.")


def _check_frame(df: object) -> None:
    if is_dataframe(df):
        return
    module = type(df).__module__
    if is_pandas_on_spark(df):
        hint = "Pass df.to_spark(), with index_col=... if you need its index."
    elif module.startswith("pandas."):
        hint = (
            "Pass spark.createDataFrame(df), or call model.predict on its values: on a single machine, this "
            "function has no advantage."
        )
    else:
        hint = "Make data on the driver a DataFrame with spark.createDataFrame(...)."
    raise DataError(f"predict() got {a_type(df)} of {module} as df; it must be a Spark DataFrame. {hint}")


def _arguments(
    columns: Sequence[Column], fill: Mapping[str, Any], stack: bool
) -> "tuple[tuple[tuple[str, ...], ...], list[SparkColumn]]":
    """Return the names and expressions of the function's arguments.

    Spark combines neighbouring numbers that are to be stacked into one array, whose values form the tensor without a
    copy; separate columns would have to be interleaved.
    """
    import pyspark.sql.functions as F

    if stack:
        check_stackable(columns)
    names: list[tuple[str, ...]] = []
    values: list[SparkColumn] = []
    for combine, group in itertools.groupby(columns, lambda column: stack and not column.depth):
        part = list(group)
        expressions = [_expression(column, fill.get(column.name), stack) for column in part]
        if combine and len(part) > 1:
            names.append(tuple(column.name for column in part))
            values.append(F.array(*expressions))
        else:
            names += [(column.name,) for column in part]
            values += expressions
    return tuple(names), values


def _expression(column: Column, fill: Any, stack: bool) -> "SparkColumn":
    import pyspark.sql.functions as F

    value: SparkColumn = column_expression(column)
    if column.conversion == "vector":
        return value
    kind = "array<" * column.depth + "float" + ">" * column.depth if stack else column.travels_as
    if stack or column.conversion:
        value = value.cast(kind)  # before filling, so that a fill value of 0.5 is not rounded in an integer column
    if fill is not None and column.depth == 0:
        value = F.coalesce(value, F.lit(fill).cast(kind))
    elif fill is not None and column.depth == 1:
        inner = kind.removeprefix("array<").removesuffix(">")
        value = F.transform(value, lambda each: F.coalesce(each, F.lit(fill).cast(inner)))
    return value


def payload_of(spark: Any, data: bytes) -> bytes | Broadcast:
    """Return the model's bytes, or a broadcast of them, which Python workers that have cached the model never read.

    Raises:
        SerializationError: If the model is too large for Spark Connect.
    """
    if is_connect(spark) and len(data) > CONNECT_LIMIT:
        raise SerializationError(
            f"The model takes {mebibytes(len(data))}. Spark Connect sends it in the query plan, which is limited to "
            f"{mebibytes(CONNECT_LIMIT)}. Save the model where TensorFlow can read it on the executors, and pass "
            "its URL, such as gs://bucket/model.keras."
        )
    if is_connect(spark) or len(data) < _MAX_INLINE:
        return data
    return spark.sparkContext.broadcast(data)  # type: ignore[no-any-return]


def _output_type(
    spark: Any,
    given: "str | DataType | None",
    model: Any,
    spec: PredictSpec,
    payload: bytes | Broadcast,
    sample: "DataFrame | None",
) -> "DataType":
    """Return the DataType of the predictions: as given, derived from the model object, or found by an executor."""
    if given is not None:
        return _parse_type(given)
    if isinstance(model, str | os.PathLike | PackedModel):
        found = _probe(spark.range(0, 1, 1, 1), spec, payload, False)
    else:
        found = _type_of_object(model)
    if found is None and sample is not None:
        found = _probe(sample.limit(1), spec, payload, True)
    if found is None:
        raise ConfigurationError(
            "The model does not declare the shapes of its inputs, so the type of its predictions is unknown"
            + (", and the DataFrame has no row with which to determine it" if sample is not None else "")
            + ". Pass output_type, for example 'float' or 'array<float>'."
        )
    return _parse_type(found)


def _type_of_object(model: Any) -> str | None:
    from .loading import from_keras
    from .outputs import spark_type
    from .predictor import describe_outputs

    outputs = describe_outputs(from_keras(model))
    return None if outputs is None else spark_type(outputs)


def _probe(frame: "DataFrame", spec: PredictSpec, payload: bytes | Broadcast, has_arguments: bool) -> str | None:
    """Return the type that an executor finds; None if the model does not declare its inputs, or there are no rows."""
    task = shipped("inference.worker", "run_probe", pickle.dumps(spec), payload, has_arguments)
    rows = frame.mapInArrow(task, "found string").collect()
    if not rows:
        return None
    found = json.loads(rows[0][0])
    if "error" in found:
        raise getattr(errors, found["error"], DataError)(found["message"])
    return found["type"]  # type: ignore[no-any-return]


def _parse_type(given: "str | DataType") -> "DataType":
    import pyspark.sql.types as T

    if isinstance(given, T.DataType):
        return given
    try:
        return T.DataType.fromDDL(given) if hasattr(T.DataType, "fromDDL") else T._parse_datatype_string(given)
    except Exception as error:
        raise ConfigurationError(
            f"output_type is {given!r}; it must be a Spark type such as 'float', 'array<float>' or "
            f"'struct<a: float, b: string>': {str(error).strip().splitlines()[0]}"
        ) from None


def _udf(spec: PredictSpec, payload: bytes | Broadcast, kind: "DataType") -> Any:
    """Return a user-defined function of Spark, based on Arrow (PySpark 4.1 and newer) or on pandas."""
    packed = pickle.dumps(replace(spec, output_type=kind.json()))
    return column_function(shipped("inference.worker", "run_function", packed, payload), kind)


def column_function(body: "Body", kind: "DataType") -> Any:
    """Return a function over batches of Arrow arrays as a user-defined function of Spark.

    Args:
        body: Takes an iterator that yields a tuple of arrays for each batch, and yields one array for each.
        kind: The type of the column.
    """
    import pyspark.sql.functions as F

    arrow_udf = getattr(F, "arrow_udf", None)
    return _pandas_udf(body, kind) if arrow_udf is None else _arrow_udf(arrow_udf, body, kind)


def _arrow_udf(arrow_udf: Any, body: "Body", kind: "DataType") -> Any:
    import pyarrow as pa

    def prediction(batches):  # type: ignore[no-untyped-def]
        yield from body(batches)

    prediction.__annotations__ = {"batches": Iterator[tuple[pa.Array, ...]], "return": Iterator[pa.Array]}
    return arrow_udf(prediction, kind)


def _pandas_udf(body: "Body", kind: "DataType") -> Any:
    import pandas as pd
    from pyspark.sql.functions import pandas_udf  # type: ignore[attr-defined]

    is_struct = kind.typeName() == "struct"

    def prediction(batches):  # type: ignore[no-untyped-def]
        import pyarrow as pa

        parts = (batch if isinstance(batch, tuple) else (batch,) for batch in batches)
        for array in body(tuple(pa.Array.from_pandas(series) for series in part) for part in parts):
            yield pa.RecordBatch.from_struct_array(array).to_pandas() if is_struct else array.to_pandas()

    result = Iterator[pd.DataFrame] if is_struct else Iterator[pd.Series]
    prediction.__annotations__ = {"batches": Iterator[tuple[pd.Series, ...]], "return": result}
    return pandas_udf(prediction, kind)
