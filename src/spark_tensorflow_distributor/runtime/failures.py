"""A worker's failure on its way to the driver: over the channel, or inside the text of a Spark error."""

import base64
import io
import json
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..errors import WorkerFailure

# Marks a failure record inside the text of a Spark error; see encode_failure.
_MARK = "spark_tensorflow_distributor-failure:"

# An exception that pickles to more than this is reported by its text alone.
_MAX_EXCEPTION_BYTES = 1 << 20
# A 20 kB text reaches the driver whole through Spark's own error, on classic and on Connect.
_MAX_ENCODED_BYTES = 16_000


def failure_record(
    rank: int,
    host: str,
    kind: str,
    message: str,
    *,
    error_type: str = "",
    traceback: str = "",
    pickled: str | None = None,
    place: Mapping[str, int] | None = None,
    log_tail: Sequence[str] = (),
) -> dict[str, Any]:
    """A worker's failure as a JSON object; ``pickled`` is what :func:`pickle_exception` made of its exception."""
    return {
        "rank": rank,
        "host": host,
        "kind": kind,
        "message": message,
        "error_type": error_type,
        "traceback": traceback,
        "pickled": pickled,
        "place": dict(place or {}),
        "log_tail": list(log_tail),
    }


def pickle_exception(error: BaseException, dumps: Callable[[Any], bytes] = pickle.dumps) -> str | None:
    """Base64 of the exception, pickled by ``dumps``; None where it does not pickle, or is larger than 1 MiB."""
    try:
        blob = dumps(error)
    except Exception:  # any class may refuse to be pickled, in any way: then its text has to do
        return None
    return base64.b64encode(blob).decode() if len(blob) <= _MAX_EXCEPTION_BYTES else None


def failure_from_record(record: Mapping[str, Any], seconds: float = 0.0) -> WorkerFailure:
    """The failure that a record describes, with its exception where that can be rebuilt here.

    Only for records whose sender has shown the run's secret, or that came through Spark: it unpickles.
    """
    names = {f.name for f in fields(WorkerFailure)} - {"exception", "log_tail", "seconds"}
    error = None
    if record.get("pickled"):
        try:
            error = _ExceptionUnpickler(io.BytesIO(base64.b64decode(record["pickled"]))).load()
        except Exception:  # the class is missing here, or cannot be rebuilt: its text has to do
            error = None
    return WorkerFailure(
        **{name: record[name] for name in names if name in record},
        log_tail=tuple(record.get("log_tail") or ()),
        exception=error if isinstance(error, BaseException) else None,
        seconds=seconds,
    )


class _ExceptionUnpickler(pickle.Unpickler):
    """Rebuilds an exception, but does not import TensorFlow for it: a driver that has not done so itself cannot be
    waiting for one of TensorFlow's exceptions, and would pay seconds and half a gigabyte."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in ("tensorflow", "keras", "tf_keras") and module not in sys.modules:
            raise pickle.UnpicklingError(f"{module} is not loaded here")
        return super().find_class(module, name)


def encode_failure(record: Mapping[str, Any]) -> str:
    """A text for a Spark task's own error, from which :func:`decode_failure` gets the record back.

    It is the only way to the driver where the driver's channel cannot be reached.
    """
    data = dict(record)
    for name, shorter in (("pickled", None), ("log_tail", []), ("traceback", data["traceback"][-4000:])):
        if len(json.dumps(data)) <= _MAX_ENCODED_BYTES:
            break
        data[name] = shorter
    data["message"] = data["message"][:4000]
    blob = base64.b64encode(json.dumps(data).encode()).decode()
    return f"rank {data['rank']} failed: {data['message'][:500]}\n{_MARK}{blob};"


def decode_failure(text: str) -> dict[str, Any] | None:
    """The failure record that a Spark error carries, or None."""
    start = text.find(_MARK)
    end = text.find(";", start)
    if start < 0 or end < 0:
        return None
    try:
        record: dict[str, Any] = json.loads(base64.b64decode(text[start + len(_MARK) : end]))
    except ValueError:
        return None
    return record
