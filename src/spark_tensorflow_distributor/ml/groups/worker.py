"""Trains one model for each group, as it runs in Spark's Python worker.

TensorFlow, the compiled model and its graph stay in the worker, which Spark reuses for the tasks of a job.
"""

import functools
import hashlib
import pickle
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from ...formatting import amount, one_line, printable
from ...inference.cache import ModelCache
from ...inference.rows import Rows, rows_from_arrow
from ...inference.startup import start_tensorflow
from ..checks import check_weights
from ..outputs import gives_logits
from .rows import GroupRows, split_groups
from .spec import GroupProgram, GroupTask, Template
from .weights import pack_weights

if TYPE_CHECKING:
    import pyarrow as pa

    from .training import GroupData, GroupTrainer, TrainedGroup

_MAX_ERROR = 4000
# Results are passed to Spark once there are this many, or this many bytes.
_RESULTS_AT_ONCE, _BYTES_AT_ONCE = 500, 4 << 20

_trainers: "ModelCache[GroupTrainer]" = ModelCache()

# What follows the key's columns in the table of models, by name.
RESULT_TYPES = {
    "num_rows": "bigint",
    "seconds": "double",
    "error": "string",
    "logs": "map<string, double>",
    "history": "array<map<string, double>>",
    "model": "binary",
    "template": "binary",
}


def run_task(packed: bytes, program: Any, batches: "Iterator[pa.RecordBatch]") -> "Iterator[pa.RecordBatch]":
    """Run the body of a Spark task: train a model for each group of rows, and yield one row for each.

    Args:
        packed: A pickled ``GroupTask``.
        program: A pickled ``GroupProgram``, or a broadcast of it.
        batches: The rows, sorted by key: the key columns, the feature columns, the label column and, if there
            are any, the weight column and the validation indicator column.
    """
    # From the driver, in the Spark task.
    task: GroupTask = pickle.loads(packed)  # noqa: S301
    results: list[dict[str, Any]] = []
    types: list[pa.Field] = []
    state = random.getstate()
    template_is_due, size = True, 0
    # Created once for each task, but again after an error.
    trainer = functools.cache(lambda: _trainer(task, packed, program))

    def watched() -> "Iterator[pa.RecordBatch]":
        for batch in batches:
            types[:] = list(batch.schema)[: task.num_keys]
            yield batch

    try:
        for group in split_groups(watched(), task.num_keys, task.max_bytes):
            result = _train(task, trainer, group, template_is_due)
            template_is_due = template_is_due and result["template"] is None
            results.append({**{f"k{i}": value for i, value in enumerate(group.key)}, **result})
            size += len(result["model"] or b"")
            if len(results) >= _RESULTS_AT_ONCE or size >= _BYTES_AT_ONCE:
                yield _batch(results, types)
                results, size = [], 0
        if results:
            yield _batch(results, types)
    finally:
        random.setstate(state)  # the process is Spark's


def _train(
    task: GroupTask, trainer_of_task: "Callable[[], GroupTrainer]", group: GroupRows, template_is_due: bool
) -> dict[str, Any]:
    started = time.perf_counter()
    result: dict[str, Any] = dict.fromkeys(("error", "logs", "history", "model", "template"))
    try:
        data = _data(task, group)
        trainer = trainer_of_task()
        trained = trainer.train(data)
        _check_finite(task, data, trained)
        result["history"], result["logs"] = trained.history, trained.history[-1]
        result["model"] = pack_weights(trained.weights)
        if template_is_due:
            result["template"] = pickle.dumps(_template(trainer))
    except Exception as error:
        result["error"] = printable(one_line(error))[:_MAX_ERROR]
        result["model"] = None
        error.with_traceback(None)  # the trainer may keep the error, but not the group's rows
    return {"num_rows": group.num_rows, "seconds": time.perf_counter() - started, **result}


def _trainer(task: GroupTask, packed: bytes, program: Any) -> "GroupTrainer":
    """Return the trainer of the job, from the cache if possible."""
    start_tensorflow(task.gpu_resource_name)
    from .training import GroupTrainer

    data: bytes = program if isinstance(program, bytes) else program.value

    def load() -> GroupProgram:
        # From the driver, in the Spark task.
        return pickle.loads(data)  # type: ignore[no-any-return]  # noqa: S301

    # By the content of the program.
    return _trainers.get(hashlib.sha256(packed + data).digest(), lambda: GroupTrainer(task, load))


def _data(task: GroupTask, group: GroupRows) -> "GroupData":
    """Return the rows of a group as arrays.

    Raises:
        DataError: The rows cannot be trained on.
    """
    import numpy as np

    if group.rows is None:
        raise DataError(
            f"The group has {group.num_rows} rows of {amount(group.num_bytes)}, but a model of a group is trained in "
            f"the memory of one task (maxGroupBytes={task.max_bytes}). Train this key by itself, without groupCol, or "
            "give the tasks more memory and raise the limit."
        )
    columns = [column.combine_chunks() for column in group.rows.columns[task.num_keys :]]
    columns = [each.chunk(0) if hasattr(each, "chunks") else each for each in columns]
    features = [rows_from_arrow(array, [name]) for array, name in zip(columns, task.features, strict=False)]
    labels, *others = columns[len(task.features) :]
    weights = is_validation = None
    if task.has_weights:
        subject = "The weight column"
        weights = rows_from_arrow(others.pop(0), ["weight"], subject=subject)
        check_weights(subject, weights.data)
    if task.has_validation:
        subject = "The validation indicator column"
        is_validation = rows_from_arrow(others.pop(0), ["indicator"], subject=subject).data
    if is_validation is not None and np.all(is_validation):
        raise DataError(f"All {group.num_rows} rows of the group are for validation, so there is none to train on.")
    from .training import GroupData

    subject = f"The label column {task.label!r}"
    return GroupData(features, rows_from_arrow(labels, [task.label], subject=subject), weights, is_validation)


def _check_finite(task: GroupTask, data: "GroupData", trained: "TrainedGroup") -> None:
    import numpy as np

    loss = [logs.get("loss", 0.0) for logs in trained.history]
    bad = next((number for number, value in enumerate(loss, 1) if not np.isfinite(value)), None)
    if bad is None and all(np.isfinite(each).all() for each in trained.weights if each.dtype.kind == "f"):
        return
    found = _nan_text([*data.features, data.labels])
    when = f"The loss is {loss[bad - 1]:g} after epoch {bad}." if bad else "Weights are not finite after training."
    raise DataError(f"{when} {found or 'The learning rate may be too high for these rows.'}")


def _nan_text(columns: Sequence[Rows]) -> str:
    import numpy as np

    for rows in columns:
        if rows.data.dtype.kind == "f" and (count := int((~np.isfinite(rows.data)).sum())):
            return f"The column {rows.name!r} contains {count} values that are NaN or infinite."
    return ""


def _template(trainer: "GroupTrainer") -> Template:
    from ...inference.model import pack, packed_keras
    from ...training.keras_pickle import with_user_classes
    from ..functions import dump_classes

    (_, archive), custom_objects = with_user_classes("keras", lambda: pack(trainer.model, None, False))
    packed = packed_keras(archive, "keras", dump_classes(custom_objects))
    return Template(packed.spec, packed.data, trainer.is_stacked, trainer.width, gives_logits(trainer.model))


def _batch(results: "list[dict[str, Any]]", keys: "list[pa.Field]") -> "pa.RecordBatch":
    import pyarrow as pa

    logs = pa.map_(pa.string(), pa.float64())
    fields = [pa.field(f"k{number}", each.type) for number, each in enumerate(keys)]
    fields += [("num_rows", pa.int64()), ("seconds", pa.float64()), ("error", pa.string()), ("logs", logs)]
    fields += [("history", pa.list_(logs)), ("model", pa.binary()), ("template", pa.binary())]
    rows = [
        {
            **each,
            "logs": None if each["logs"] is None else list(each["logs"].items()),
            "history": None if each["history"] is None else [list(entry.items()) for entry in each["history"]],
        }
        for each in results
    ]
    return pa.RecordBatch.from_pylist(rows, pa.schema(fields))
