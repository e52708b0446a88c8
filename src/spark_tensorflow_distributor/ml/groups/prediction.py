"""Predicts with the model of each row's group, as it runs in Spark's Python worker."""

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from ...inference.cache import ModelCache
from ...inference.outputs import type_from_json
from ...inference.rows import Rows, rows_from_arrow, rows_to_arrow, stack
from ...inference.startup import start_tensorflow
from .rows import Key, key_at, key_runs, same_key
from .spec import Template
from .weights import unpack_weights

if TYPE_CHECKING:
    import pyarrow as pa


_appliers: "ModelCache[_Applier]" = ModelCache()


@dataclass(frozen=True)
class GroupPredictTask:
    """Describes the prediction.

    Attributes:
        group_columns: The names of the columns that form the key.
        features: The names of the feature columns.
        is_single: Whether the user gave a single name, so that the model gets one tensor instead of a collection.
        batch_size: Largest number of rows in one call of the model.
        gpu_resource_name: Name of the GPU resource in Spark's settings.
        refuses_unknown: Whether a key without a model is an error; else its predictions are null.
        output_type: Spark's type of a prediction, as JSON.
        integers: Arrow's types of the features that come as text; ``""`` for the others.
    """

    group_columns: tuple[str, ...]
    features: tuple[str, ...]
    is_single: bool
    batch_size: int
    gpu_resource_name: str
    refuses_unknown: bool
    output_type: str
    integers: tuple[str, ...]


def run_function(packed: bytes, template: Any, batches: "Iterator[tuple[pa.Array, ...]]") -> "Iterator[pa.Array]":
    """Run the column function, which yields one array of predictions for each batch.

    Args:
        packed: A pickled ``GroupPredictTask``.
        template: A pickled ``Template``, or a broadcast of it.
        batches: The arrays of the key's columns as text, whether the models' keys can have this value, the weights,
            and the features; sorted by key, and within a key the row that has the weights first. That row's features
            are null, and its prediction is null.

    Raises:
        DataError: There are two models for a key; or none, with ``refuses_unknown``.
    """
    import pyarrow as pa
    from pyspark.sql.pandas.types import to_arrow_type

    # From the driver, in the Spark task.
    task: GroupPredictTask = pickle.loads(packed)  # noqa: S301
    kind = to_arrow_type(type_from_json(task.output_type))
    count = len(task.group_columns) + 1
    current: tuple[Key, bytes | None] | None = None
    applier: _Applier | None = None
    for arrays in batches:
        keys, models, features = [_typed(each) for each in arrays[:count]], arrays[count], arrays[count + 1 :]
        pieces: list[pa.Array] = []
        for start, stop in key_runs(keys):
            key = key_at(keys, start)
            if current is None or not same_key(current[0], key):
                current = key, None
            while start < stop and models[start].is_valid:
                if current[1] is not None:
                    raise DataError(f"There are two models for the group {_text(task, key)}.")
                current = key, models[start].as_py()
                pieces.append(pa.nulls(1, kind))
                start += 1
            if start == stop:
                continue
            if current[1] is None:
                _refuse_unknown(task, key)
                pieces.append(pa.nulls(stop - start, kind))
            else:
                applier = applier or _applier(task, template)
                chosen = [each.slice(start, stop - start) for each in features]
                pieces += applier.predict(task, current[1], chosen, kind)
        yield pa.concat_arrays(pieces) if pieces else pa.array([], kind)


def _typed(array: "pa.Array") -> "pa.Array":
    """Return an array of nulls only, whose type pandas does not know, as text; others unchanged."""
    import pyarrow as pa

    return array.cast(pa.string()) if pa.types.is_null(array.type) else array


def _text(task: GroupPredictTask, key: Key) -> str:
    return ", ".join(f"{name}={value}" for name, value in zip(task.group_columns, key[:-1], strict=True))


def _refuse_unknown(task: GroupPredictTask, key: Key) -> None:
    if task.refuses_unknown:
        what = f"the group {_text(task, key)}"
        if not key[-1]:
            what = f"a value of {', '.join(task.group_columns)} that the type of the models' key cannot hold"
        raise DataError(
            f"There is no model for {what}: it was not among the rows of fit(), or its training failed (see "
            "the model's failures). With handleInvalid='keep' its predictions are null, with 'skip' its rows are left "
            "out."
        )


def _applier(task: GroupPredictTask, template: Any) -> "_Applier":
    start_tensorflow(task.gpu_resource_name)
    data: bytes = template if isinstance(template, bytes) else template.value
    # From the driver, in the Spark task.
    found: Template = pickle.loads(data)  # noqa: S301
    return _appliers.get(found.spec.key, lambda: _Applier(found))


class _Applier:
    """Applies a model with changing weights.

    Args:
        template: The model.
    """

    def __init__(self, template: Template) -> None:
        from ...inference.loading import load
        from ...inference.predictor import Predictor

        loaded = load(template.spec, lambda: template.data)
        self._stack = template.stack
        self._predictor: Predictor = Predictor(loaded)
        self._variables: Sequence[Any] = loaded.owner.weights  # type: ignore[attr-defined]
        self._likes = [variable.numpy() for variable in self._variables]
        self._current: bytes | None = None

    def predict(
        self, task: GroupPredictTask, weights: bytes, arrays: "Sequence[pa.Array]", kind: "pa.DataType"
    ) -> "list[pa.Array]":
        """Return the predictions for the rows of one group, in pieces."""
        if weights is not self._current:
            for variable, value in zip(self._variables, unpack_weights(weights, self._likes), strict=True):
                variable.assign(value)
            self._current = weights
        arrays = [each.cast(name) if name else each for each, name in zip(arrays, task.integers, strict=True)]
        features = [rows_from_arrow(array, [name]) for array, name in zip(arrays, task.features, strict=True)]
        if self._stack:
            features = [stack(features)]
        is_single = task.is_single or self._stack
        size, count = task.batch_size, len(arrays[0])
        return [
            rows_to_arrow([self._one_output(features, start, min(start + size, count), is_single)], kind)
            for start in range(0, count, size)
        ]

    def _one_output(self, features: Sequence[Rows], start: int, stop: int, is_single: bool) -> Rows:
        outputs = self._predictor([rows.slice(start, stop) for rows in features], is_single, True)
        return outputs[0]
