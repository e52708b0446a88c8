"""The prediction function, as it runs in Spark's Python worker."""

import itertools
import json
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ClusterError, DataError, DistributorError
from . import loading
from .model import ModelSpec
from .outputs import Output, spark_type
from .predictor import Predictor
from .rows import Rows, rows_of, stacked, to_arrow


@dataclass(frozen=True)
class PredictSpec:
    """All that the function needs to know, but for the model's bytes.

    Attributes:
        model: the model.
        arguments: for each argument its name, or several where Spark has put that many columns into one array; empty
            where the arguments have no names.
        is_one: a single name was given: one tensor, not a collection.
        stack: all arguments side by side in one tensor.
        batch_size: rows in one call of the model, at most.
        output_type: Spark's type of the column, as JSON; empty while that is looked for.
        gpu_resource_name: Spark's name of GPUs.
    """

    model: ModelSpec
    arguments: tuple[tuple[str, ...], ...]
    is_one: bool
    stack: bool
    batch_size: int
    output_type: str
    gpu_resource_name: str


def run_function(packed: bytes, payload: Any, batches: Iterator[Any]) -> Iterator[Any]:
    """The body of the column function: for each batch its arguments as Arrow arrays, one array of predictions.

    Args:
        packed: a pickled ``PredictSpec``.
        payload: the model's bytes, or Spark's broadcast of them.
        batches: an array a batch, or a tuple of arrays.
    """
    from pyspark.sql.pandas.types import to_arrow_type
    from pyspark.sql.types import _parse_datatype_json_string

    spec: PredictSpec = pickle.loads(packed)
    kind = to_arrow_type(_parse_datatype_json_string(spec.output_type))
    predictor: Predictor | None = None
    for batch in batches:
        arrays = batch if isinstance(batch, tuple) else (batch,)
        if predictor is None and len(arrays[0]):  # an empty partition asks for no model
            predictor = _predictor(spec, payload)
        yield _predict(predictor, spec, arrays, kind)


def _predictor(spec: PredictSpec, payload: Any) -> Predictor:
    loading.start_tensorflow(spec.gpu_resource_name)
    return loading.hold(spec.model, lambda: _bytes_of(payload), Predictor)  # type: ignore[no-any-return]


def _bytes_of(payload: Any) -> bytes:
    return payload if isinstance(payload, bytes) else payload.value


def _predict(predictor: Predictor | None, spec: PredictSpec, arrays: Sequence[Any], kind: Any) -> Any:
    import pyarrow as pa

    if predictor is None or not len(arrays[0]):
        return pa.array([], kind)
    pieces = _outputs(predictor, spec, arrays)
    if not pa.types.is_struct(kind):
        if len(pieces[0]) != 1:
            raise DataError(
                f"The model has {len(pieces[0])} outputs ({', '.join(rows.name for rows in pieces[0])}), and the "
                f"column is {kind}. Give a struct with a field for each as output_type."
            )
        return to_arrow([piece[0] for piece in pieces], kind)
    fields = [kind.field(i) for i in range(kind.num_fields)]
    if len(fields) != len(pieces[0]):
        raise DataError(
            f"The model has the outputs {[rows.name for rows in pieces[0]]}, and output_type the fields "
            f"{[field.name for field in fields]}. Give one for each."
        )
    places = _places([rows.name for rows in pieces[0]], [field.name for field in fields])
    columns = [to_arrow([piece[i] for piece in pieces], f.type) for i, f in zip(places, fields, strict=True)]
    return pa.StructArray.from_arrays(columns, fields=fields)


def _places(names: list[str], fields: list[str]) -> list[int]:
    """For each field, which output: by name, or else in order."""
    return [names.index(field) for field in fields] if set(names) == set(fields) else list(range(len(fields)))


def _outputs(predictor: Predictor, spec: PredictSpec, arrays: Sequence[Any]) -> list[list[Rows]]:
    """For each piece of the batch, the model's outputs."""
    names = spec.arguments or tuple((f"argument {number + 1}",) for number in range(len(arrays)))
    if len(names) != len(arrays):
        raise DataError(
            f"The prediction function was called with {len(arrays)} columns, and feature_columns names {len(names)}: "
            f"{', '.join(name[0] for name in names)}. Pass one column for each."
        )
    features = [rows_of(array, name) for array, name in zip(arrays, names, strict=True)]
    is_one = spec.is_one or spec.stack or (not spec.arguments and len(features) == 1)
    if spec.stack:
        features = [stacked(features)]
    count = len(arrays[0])
    number = -(-count // spec.batch_size)
    cuts = [count * i // number for i in range(number + 1)]
    return [
        predictor([rows.cut(start, stop) for rows in features], is_one, bool(spec.arguments))
        for start, stop in itertools.pairwise(cuts)
    ]


def run_probe(packed: bytes, payload: Any, has_arguments: bool, batches: Iterator[Any]) -> Iterator[Any]:
    """The body of a Spark job of one row, which looks for the type of the predictions: ``{"type": DDL}``, or null where
    the model does not tell, or ``{"error": class, "message": text}``, in JSON.

    Args:
        packed: a pickled ``PredictSpec``.
        payload: as in ``run_function``.
        has_arguments: the row has the function's arguments, and the model is called with them.
        batches: the row.
    """
    import pyarrow as pa

    for batch in batches:  # to its end, or Spark would not use this Python worker again
        if batch.num_rows:
            found = json.dumps(_probe(pickle.loads(packed), payload, batch.columns if has_arguments else None))
            yield pa.RecordBatch.from_arrays([pa.array([found])], ["found"])


def _probe(spec: PredictSpec, payload: Any, arrays: Sequence[Any] | None) -> dict[str, Any]:
    try:
        predictor = _predictor(spec, payload)
        if arrays is None:
            outputs = predictor.describe()
        else:
            outputs = [Output(rows.name, rows.dims, rows.dtype) for rows in _outputs(predictor, spec, arrays)[0]]
        return {"type": None if outputs is None else spark_type(outputs)}
    except DistributorError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except ImportError as error:
        return {"error": ClusterError.__name__, "message": loading.missing_tensorflow(error)}
