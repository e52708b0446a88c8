"""The part of the prediction function that runs in Spark's Python workers."""

import itertools
import json
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ..errors import ClusterError, DataError, DistributorError
from .cache import ModelCache
from .model import ModelSpec
from .outputs import Output, spark_type, type_from_json
from .rows import Rows, rows_from_arrow, rows_to_arrow, stack
from .startup import missing_here, start_tensorflow

if TYPE_CHECKING:
    import pyarrow as pa

    from .predictor import Predictor

_predictors: "ModelCache[Predictor]" = ModelCache()


class Broadcast(Protocol):
    """Spark's broadcast of a model's bytes."""

    @property
    def value(self) -> bytes: ...


@dataclass(frozen=True)
class PredictSpec:
    """Everything that the prediction function needs, except the model's bytes.

    Attributes:
        model: The description of the model.
        arguments: For each argument, the name of its column, or the names of the columns that Spark combined into one
            array; empty if the arguments have no names.
        is_single: Whether the user gave a single name, so that the model gets one tensor instead of a collection.
        stack: Whether to put all arguments side by side in one tensor.
        batch_size: Maximum number of rows per call of the model.
        gpu_resource_name: Name of the GPU resource in Spark's settings.
        output_type: The Spark type of the column as JSON, or ``""`` while it is unknown.
        has_fill_value: Whether the user can pass ``fill_value``, for errors about nulls.
    """

    model: ModelSpec
    arguments: tuple[tuple[str, ...], ...]
    is_single: bool
    stack: bool
    batch_size: int
    gpu_resource_name: str
    output_type: str = ""
    has_fill_value: bool = False


def run_function(
    packed: bytes, model: bytes | Broadcast, batches: "Iterator[pa.Array | tuple[pa.Array, ...]]"
) -> "Iterator[pa.Array]":
    """Run the column function, which yields one array of predictions for each batch.

    Args:
        packed: A pickled ``PredictSpec``.
        model: The model's bytes.
        batches: For each batch, the array of the only argument, or a tuple of arrays.
    """
    from pyspark.sql.pandas.types import to_arrow_type

    # The pickle comes from the driver, as part of the Spark task.
    spec: PredictSpec = pickle.loads(packed)  # noqa: S301
    kind = to_arrow_type(type_from_json(spec.output_type))
    predictor: Predictor | None = None
    for batch in batches:
        arrays = batch if isinstance(batch, tuple) else (batch,)
        if predictor is None and len(arrays[0]):  # do not load the model for an empty partition
            predictor = _predictor(spec, model)
        yield _predict(predictor, spec, arrays, kind)


def _predictor(spec: PredictSpec, model: bytes | Broadcast) -> "Predictor":
    """Return the model's predictor, from the cache if possible."""
    start_tensorflow(spec.gpu_resource_name)
    from .loading import load
    from .predictor import Predictor

    def loaded() -> Predictor:
        return Predictor(load(spec.model, lambda: model if isinstance(model, bytes) else model.value))

    return _predictors.get(spec.model.key, loaded)


def _predict(
    predictor: "Predictor | None", spec: PredictSpec, arrays: "Sequence[pa.Array]", kind: "pa.DataType"
) -> "pa.Array":
    import pyarrow as pa

    if predictor is None or not len(arrays[0]):
        return pa.array([], kind)
    pieces = _outputs(predictor, spec, arrays)
    names = [rows.name for rows in pieces[0]]
    if not pa.types.is_struct(kind):
        if len(names) != 1:
            raise DataError(
                f"The model has {len(names)} outputs ({', '.join(names)}), but the column is {kind}. Pass an "
                "output_type that is a struct with a field for each."
            )
        return rows_to_arrow([piece[0] for piece in pieces], kind)
    fields = [kind.field(i) for i in range(kind.num_fields)]
    field_names = [field.name for field in fields]
    if len(fields) != len(names):
        raise DataError(
            f"The model has the outputs {names}, but output_type has the fields {field_names}. Pass one field for each "
            "output."
        )
    by_name = set(names) == set(field_names)
    positions = [names.index(name) for name in field_names] if by_name else range(len(names))
    columns = [rows_to_arrow([p[i] for p in pieces], f.type) for i, f in zip(positions, fields, strict=True)]
    return pa.StructArray.from_arrays(columns, fields=fields)


def _outputs(predictor: "Predictor", spec: PredictSpec, arrays: "Sequence[pa.Array]") -> list[list[Rows]]:
    """Return the model's outputs for each piece of the batch."""
    names = spec.arguments or tuple((f"argument {number + 1}",) for number in range(len(arrays)))
    if len(names) != len(arrays):
        raise DataError(
            f"The prediction function was called with {len(arrays)} columns, but feature_columns names {len(names)}: "
            f"{', '.join(name[0] for name in names)}. Pass one column for each."
        )
    features = [
        rows_from_arrow(array, name, has_fill_value=spec.has_fill_value)
        for array, name in zip(arrays, names, strict=True)
    ]
    is_single = spec.is_single or spec.stack or (not spec.arguments and len(features) == 1)
    if spec.stack:
        features = [stack(features)]
    num_rows = len(arrays[0])
    num_pieces = -(-num_rows // spec.batch_size)
    bounds = [num_rows * i // num_pieces for i in range(num_pieces + 1)]
    return [
        predictor([rows.slice(start, stop) for rows in features], is_single, bool(spec.arguments))
        for start, stop in itertools.pairwise(bounds)
    ]


def run_probe(
    packed: bytes, model: bytes | Broadcast, has_arguments: bool, batches: "Iterator[pa.RecordBatch]"
) -> "Iterator[pa.RecordBatch]":
    """Run in a Spark job of at most one row, to find the type of the predictions.

    Yields one row with JSON: ``{"type": DDL}``, with null if the type is unknown, or ``{"error": class, "message":
    text}``.

    Args:
        packed: A pickled ``PredictSpec``.
        model: The model's bytes.
        has_arguments: Whether the input row holds arguments with which to call the model.
        batches: The batches with the input row.
    """
    import pyarrow as pa

    for batch in batches:  # to the end, because Spark reuses only Python workers that have read all of their input
        if batch.num_rows:
            # This pickle, too, comes from the driver.
            found = json.dumps(_probe(pickle.loads(packed), model, batch.columns if has_arguments else None))  # noqa: S301
            yield pa.RecordBatch.from_arrays([pa.array([found])], ["found"])


def _probe(spec: PredictSpec, model: bytes | Broadcast, arrays: "Sequence[pa.Array] | None") -> dict[str, str | None]:
    try:
        predictor = _predictor(spec, model)
        if arrays is None:
            outputs = predictor.describe()
        else:
            outputs = [Output(rows.name, rows.dims, rows.dtype) for rows in _outputs(predictor, spec, arrays)[0]]
        return {"type": None if outputs is None else spark_type(outputs)}
    except DistributorError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except ImportError as error:
        return {"error": ClusterError.__name__, "message": missing_here(error)}
