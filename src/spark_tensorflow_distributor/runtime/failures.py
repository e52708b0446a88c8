"""Carries a worker's failure to the driver, over the channel or inside the text of a Spark error."""

import base64
import io
import json
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..errors import DistributorError, WorkerFailure
from ..formatting import one_line, printable, printable_line, type_name
from .wire import Message, from_json

# Marks a failure inside the text of a Spark error; see Failure.to_spark_error.
_MARK = "spark_tensorflow_distributor-failure:"

# Larger pickled exceptions are reported as text only.
_MAX_EXCEPTION_BYTES = 1 << 20
# The text of a Spark error reaches the driver untruncated up to at least 20 kB, on classic Spark and on Connect.
_MAX_ENCODED_BYTES = 16_000


@dataclass(frozen=True)
class Failure:
    """How one worker failed: :class:`~spark_tensorflow_distributor.WorkerFailure` in a form that travels as JSON.

    Attributes:
        rank, host, kind, message, error_type, traceback, place, log_tail: As in ``WorkerFailure``.
        pickled: Base64 of the pickled exception; None if it does not pickle or exceeds 1 MiB.
        seconds: When the driver recorded it, on the driver's clock; set by the driver.
    """

    rank: int
    host: str
    kind: str
    message: str
    error_type: str = ""
    traceback: str = ""
    pickled: str | None = None
    place: Mapping[str, int] = field(default_factory=dict)
    log_tail: tuple[str, ...] = ()
    seconds: float = 0.0

    @classmethod
    def from_exception(
        cls,
        rank: int,
        host: str,
        kind: str,
        error: BaseException,
        *,
        message: str | None = None,
        with_traceback: bool = True,
        dumps: Callable[[Any], bytes] = pickle.dumps,
        **details: Any,
    ) -> "Failure":
        """Describe an exception.

        Args:
            rank: The worker's rank.
            host: The worker's host.
            kind: See ``WorkerFailure``.
            error: The exception.
            message: The text to show; by default the exception's own.
            with_traceback: Whether to include the traceback, with the exceptions that led to this one.
            dumps: Pickles the exception.
            details: Further attributes.
        """
        if message is None:
            message = str(error) if isinstance(error, DistributorError) else one_line(error)
        return cls(
            rank,
            host,
            kind,
            message,
            error_type=type_name(error),
            traceback="".join(traceback.format_exception(error)) if with_traceback else "",
            pickled=_pickle_exception(error, dumps),
            **details,
        )

    def to_json(self) -> Message:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Message) -> "Failure":
        return from_json(cls, data)

    def to_spark_error(self) -> str:
        """Return a text for the Spark task's error, from which :meth:`from_spark_error` restores the failure.

        If the driver's channel cannot be reached, failures can only travel this way.
        """
        failure = self
        shortened: tuple[Message, ...] = (
            {"pickled": None},
            {"log_tail": ()},
            {"traceback": self.traceback[-4000:]},
        )
        for change in shortened:
            if len(json.dumps(failure.to_json())) <= _MAX_ENCODED_BYTES:
                break
            failure = replace(failure, **change)
        failure = replace(failure, message=self.message[:4000])
        blob = base64.b64encode(json.dumps(failure.to_json()).encode()).decode()
        return f"rank {self.rank} failed: {self.message[:500]}\n{_MARK}{blob};"

    @classmethod
    def from_spark_error(cls, text: str) -> "Failure | None":
        """Return the failure that the text of a Spark error carries, or None."""
        start = text.find(_MARK)
        end = text.find(";", start)
        if start < 0 or end < 0:
            return None
        try:
            return cls.from_json(json.loads(base64.b64decode(text[start + len(_MARK) : end])))
        except ValueError:
            return None

    def to_worker_failure(self) -> WorkerFailure:
        """Return the public form, with the original exception if it can be rebuilt here.

        This unpickles the exception: use it only for failures that came through Spark, or from a sender that has
        proved that it knows the launch's secret.
        """
        data = {name: value for name, value in vars(self).items() if name != "pickled"}
        for name in ("host", "message", "error_type", "traceback"):
            data[name] = printable(data[name])
        data["log_tail"] = tuple(map(printable_line, self.log_tail))
        return WorkerFailure(**data, exception=_rebuild_exception(self.pickled))


def _pickle_exception(error: BaseException, dumps: Callable[[Any], bytes]) -> str | None:
    try:
        blob = dumps(error)
    except Exception:  # pickling can raise any exception; send the text only
        return None
    return base64.b64encode(blob).decode() if len(blob) <= _MAX_EXCEPTION_BYTES else None


def _rebuild_exception(pickled: str | None) -> BaseException | None:
    if not pickled:
        return None
    try:
        error = _ExceptionUnpickler(io.BytesIO(base64.b64decode(pickled))).load()
    except Exception:  # the class is missing here or cannot be rebuilt; use the text only
        return None
    return error if isinstance(error, BaseException) else None


class _ExceptionUnpickler(pickle.Unpickler):
    """Rebuilds an exception without importing TensorFlow.

    A program that has not imported TensorFlow on the driver cannot be catching its exceptions by type, and the import
    costs seconds and half a gigabyte.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in ("tensorflow", "keras", "tf_keras") and module not in sys.modules:
            raise pickle.UnpicklingError(f"{module} is not loaded here")
        return super().find_class(module, name)
