"""``predict`` and ``predict_udf``: a model as a column of predictions. Driver side."""

import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .. import errors
from ..data.columns import Column, by_column
from ..data.frames import column_expression
from ..errors import ConfigurationError, DataError, SerializationError
from ..runtime.driver.spark import active_session, is_connect
from ..runtime.shipping import shipped
from .features import check_stackable, choose, feature_names
from .model import pack
from .worker import PredictSpec

_LARGE = 1 << 20
# Below the 128 MiB that a server of Spark Connect takes in one message (spark.connect.grpc.maxInboundMessageSize).
_CONNECT_LIMIT = 120 << 20


def predict(
    df: Any,
    model: Any,
    feature_columns: str | Sequence[str],
    *,
    stack: bool = False,
    output_column: str = "prediction",
    batch_size: int = 4096,
    output_type: Any = None,
    fill_value: Any = None,
    custom_objects: Mapping[str, Any] | None = None,
    safe_mode: bool = True,
    gpu_resource_name: str = "gpu",
) -> Any:
    """The DataFrame with a column of a model's predictions, computed on the cluster when the DataFrame is.

    All other columns, the rows' partitions and their order stay as they are, and never leave the JVM. Executors need
    TensorFlow, and this library not. Filter rows before, not after: a filter is not moved below the predictions.

    Args:
        df: a DataFrame, of classic Spark or Spark Connect, or a stream (then with ``output_type``, where the model
            does not tell the shapes of its inputs).
        model: a Keras model (Keras 3 or tf_keras), or the path of a saved one on the driver: ``.keras``, ``.h5``, a
            SavedModel directory. A URL (``gs://``, ``s3://``, ``hdfs://``) is read by TensorFlow on the executors.
        feature_columns: one name: the model gets a tensor ``[batch]``, or ``[batch, k]`` of arrays or vectors. A list:
            it gets a tensor for each, by name. ``outer.inner`` is a field of a struct. Rows are reshaped to the
            model's input where their number of values fits. Arrays of different lengths become a RaggedTensor.
        stack: all columns (numbers, flat arrays, vectors) side by side in one float32 tensor ``[batch, k]``.
        output_column: name of the new column; one of that name is replaced.
        batch_size: rows in one call of the model, at most.
        output_type: the column's Spark type, a DDL string or a DataType. Default: the type of what the model gives.
            ``[batch]`` and ``[batch, 1]`` are scalars, ``[batch, k]`` an array, several outputs a struct.
        fill_value: in place of nulls, also inside of flat arrays: a value, or a dict by column. Default: a null is an
            error.
        custom_objects: classes and functions of one's own that a saved model names. Those of a model object are found.
        safe_mode: False lets Keras run Python code in the file (Lambda layers). A model object is always trusted.
        gpu_resource_name: the resource of which Spark deals GPUs to tasks. Without one, the model runs on the CPU.

    Returns:
        a DataFrame, not computed yet.

    Raises:
        ConfigurationError: an argument is wrong, or there is no such model.
        DataError: a column is missing, or it or the model's output has no meaning on the other side.
        SerializationError: the model cannot be saved or loaded.
        ClusterError: the executors have no TensorFlow.
    """
    _check(batch_size, output_column)
    names = feature_names(feature_columns)
    columns = choose(df.schema.jsonValue(), names)
    if stack:
        check_stackable(columns)
    arguments, values = _arguments(columns, by_column("fill_value", fill_value, names), stack)
    spec, data = pack(model, custom_objects, safe_mode)
    is_one = isinstance(feature_columns, str)
    whole = PredictSpec(spec, arguments, is_one, stack, batch_size, "", gpu_resource_name)
    payload = _payload(df.sparkSession, data)
    sample = None if df.isStreaming else df.select(*(v.alias(f"c{i}") for i, v in enumerate(values)))
    kind = _output_type(df.sparkSession, output_type, model, whole, payload, sample)
    # Spark repeats a deterministic function where its column is used again, in a filter for example.
    return df.withColumn(output_column, _udf(whole, payload, kind).asNondeterministic()(*values))


def predict_udf(
    model: Any,
    feature_columns: str | Sequence[str] | None = None,
    *,
    stack: bool = False,
    batch_size: int = 4096,
    output_type: Any = None,
    custom_objects: Mapping[str, Any] | None = None,
    safe_mode: bool = True,
    gpu_resource_name: str = "gpu",
    spark: Any = None,
) -> Any:
    """A model as a function of columns, for ``select``, ``withColumn`` and, with ``spark.udf.register``, SQL.

    It is one of Spark's own user-defined functions, and deterministic: Spark may compute a column twice where it is
    used twice; ``asNondeterministic()`` prevents that. Arguments that are vectors want ``vector_to_array`` around them,
    structs are passed field by field, and nulls want a ``coalesce``.

    Args:
        model: as in :func:`predict`.
        feature_columns: names for the arguments, in their order: of the model's inputs, or of columns. A single name:
            one argument, which becomes the model's only tensor. Default: no names; a single argument is the model's
            tensor, and several are its inputs in order.
        stack: as in :func:`predict`, of all arguments.
        batch_size, output_type, custom_objects, safe_mode, gpu_resource_name: as in :func:`predict`. ``output_type`` is
            needed where the model does not tell the shapes of its inputs.
        spark: the session. Default: the active one.

    Raises:
        ConfigurationError, DataError, SerializationError, ClusterError: as in :func:`predict`.
    """
    _check(batch_size, "prediction")
    names = () if feature_columns is None else feature_names(feature_columns)
    session = active_session(spark)
    spec, data = pack(model, custom_objects, safe_mode)
    is_one = isinstance(feature_columns, str)
    arguments = tuple((name,) for name in names)
    whole = PredictSpec(spec, arguments, is_one, stack, batch_size, "", gpu_resource_name)
    payload = _payload(session, data)
    return _udf(whole, payload, _output_type(session, output_type, model, whole, payload, None))


def _check(batch_size: Any, output_column: Any) -> None:
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ConfigurationError(f"batch_size is {batch_size!r}; it must be a number of rows, 1 or more.")
    if not isinstance(output_column, str) or not output_column:
        raise ConfigurationError(f"output_column is {output_column!r}; it must be the name of a column.")


def _arguments(
    columns: Sequence[Column], fill: Mapping[str, Any], stack: bool
) -> tuple[tuple[tuple[str, ...], ...], list[Any]]:
    """The function's arguments: names and expressions.

    Numbers that are stacked are put into one array by Spark: the array's values are the tensor, without a copy, where
    single columns would have to be woven together.
    """
    import pyspark.sql.functions as F

    names: list[tuple[str, ...]] = []
    values: list[Any] = []
    row: list[Any] = []
    for column in columns:
        value = _expression(column, fill.get(column.name), stack)
        if not stack or column.depth:
            names.append((column.name,))
            values.append(value)
            row = []
            continue
        if row:
            names[-1] += (column.name,)
        else:
            names.append((column.name,))
            values.append(None)
        row.append(value)
        values[-1] = F.array(*row)
    return tuple(names), values


def _expression(column: Column, fill: Any, stack: bool) -> Any:
    import pyspark.sql.functions as F

    value = column_expression(column)
    if column.conversion == "vector":
        return value
    kind = "array<" * column.depth + "float" + ">" * column.depth if stack else column.travels_as
    if stack or column.conversion:
        value = value.cast(kind)  # before it is filled: half a unit in a column of integers stays a half
    if fill is None:
        return value
    if column.depth == 0:
        return F.coalesce(value, F.lit(fill).cast(kind))
    if column.depth == 1:
        inner = kind.removeprefix("array<").removesuffix(">")
        return F.transform(value, lambda each: F.coalesce(each, F.lit(fill).cast(inner)))
    return value


def _payload(spark: Any, data: bytes) -> Any:
    """The model's bytes, by Spark's broadcast where it has one: a Python worker that holds the model never reads it.

    Raises:
        SerializationError: it is too large for a plan of Spark Connect.
    """
    if is_connect(spark) and len(data) > _CONNECT_LIMIT:
        raise SerializationError(
            f"The model has {len(data) / 2**20:.0f} MiB, and over Spark Connect it travels in the plan, which may have "
            f"{_CONNECT_LIMIT >> 20} MiB. Save it where the executors can read it and pass the URL (gs://, s3://, "
            "hdfs://)."
        )
    return data if is_connect(spark) or len(data) < _LARGE else spark.sparkContext.broadcast(data)


def _output_type(spark: Any, given: Any, model: Any, spec: PredictSpec, payload: Any, sample: Any) -> Any:
    """The DataType of the predictions: as given, as the model object tells, or as an executor finds."""
    if given is not None:
        return _parsed(given)
    found = None
    if not isinstance(model, str | os.PathLike):
        found = _told_by(model)
    else:
        found = _probe(spark.range(0, 1, 1, 1), spec, payload, False)
    if found is None and sample is not None:
        found = _probe(sample.limit(1), spec, payload, True)
    if found is None:
        raise ConfigurationError(
            "The model does not tell the shapes of its inputs, so the type of its predictions is not known"
            + (", and the DataFrame has no row to try it with" if sample is not None else "")
            + ". Give output_type, for example 'float' or 'array<float>'."
        )
    return _parsed(found)


def _told_by(model: Any) -> str | None:
    from .loading import of_keras
    from .outputs import spark_type
    from .predictor import outputs_of

    outputs = outputs_of(of_keras(model))
    return None if outputs is None else spark_type(outputs)


def _probe(frame: Any, spec: PredictSpec, payload: Any, has_arguments: bool) -> str | None:
    """What an executor says; None where the model does not tell, or there is no row."""
    task = shipped("inference.worker", "run_probe", pickle.dumps(spec), payload, has_arguments)
    rows = frame.mapInArrow(task, "found string").collect()
    if not rows:
        return None
    found = json.loads(rows[0][0])
    if "error" in found:
        raise getattr(errors, found["error"], DataError)(found["message"])
    return found["type"]  # type: ignore[no-any-return]


def _parsed(given: Any) -> Any:
    """A DDL string or DataType as a DataType that a prediction can have."""
    import pyspark.sql.types as T

    if isinstance(given, T.DataType):
        kind = given
    else:
        try:
            kind = T.DataType.fromDDL(given) if hasattr(T.DataType, "fromDDL") else T._parse_datatype_string(given)
        except Exception as error:
            raise ConfigurationError(
                f"output_type is {given!r}; it must be a Spark type such as 'float', 'array<float>' or 'struct<a: "
                f"float, b: string>': {str(error).strip().splitlines()[0]}"
            ) from None
    return kind


def _udf(spec: PredictSpec, payload: Any, kind: Any) -> Any:
    """Spark's user-defined function: by Arrow where this PySpark has that (4.1), else by way of pandas."""
    import pyspark.sql.functions as F

    packed = pickle.dumps(replace(spec, output_type=kind.json()))
    body = shipped("inference.worker", "run_function", packed, payload)
    arrow_udf = getattr(F, "arrow_udf", None)
    return _pandas_udf(body, kind) if arrow_udf is None else _arrow_udf(arrow_udf, body, kind)


def _arrow_udf(arrow_udf: Any, body: Callable[[Iterator[Any]], Iterator[Any]], kind: Any) -> Any:
    import pyarrow as pa

    def prediction(batches):  # type: ignore[no-untyped-def]
        yield from body(batches)

    prediction.__annotations__ = {"batches": Iterator[tuple[pa.Array, ...]], "return": Iterator[pa.Array]}
    return arrow_udf(prediction, kind)


def _pandas_udf(body: Callable[[Iterator[Any]], Iterator[Any]], kind: Any) -> Any:
    import pandas as pd
    from pyspark.sql.functions import pandas_udf  # type: ignore[attr-defined]

    is_struct = kind.typeName() == "struct"

    def prediction(batches):  # type: ignore[no-untyped-def]
        import pyarrow as pa

        parts = (batch if isinstance(batch, tuple) else (batch,) for batch in batches)
        for array in body(tuple(pa.Array.from_pandas(series) for series in part) for part in parts):
            yield pa.RecordBatch.from_struct_array(array).to_pandas() if is_struct else array.to_pandas()

    gives = Iterator[pd.DataFrame] if is_struct else Iterator[pd.Series]
    prediction.__annotations__ = {"batches": Iterator[tuple[pd.Series, ...]], "return": gives}
    return pandas_udf(prediction, kind)
