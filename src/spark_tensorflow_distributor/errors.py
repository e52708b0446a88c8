"""The exceptions of this library.

    DistributorError
    ├ ConfigurationError (also ValueError)
    │ └ CallError (also TypeError)
    ├ ClusterError
    │ ├ InsufficientSlotsError
    │ ├ GpuConfigurationError (also ValueError)
    │ └ EncryptionUnsupportedError
    ├ RendezvousError
    │ └ RendezvousTimeoutError
    ├ DataError
    ├ CheckpointError
    ├ SerializationError
    │ └ ResultNotLoadedError (.data, .path)
    ├ CollectiveError
    ├ RunCancelledError
    └ TrainingFailedError (.failures by rank, .root_cause)
      └ WorkerDataError (also DataError)

Every message says what happened, which value was found, the likely cause, and which setting to change. All exceptions
pickle. The driver, Spark's Python worker and the trainer all use this module.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .formatting import printable


class DistributorError(Exception):
    """Base class of all errors that this library raises deliberately."""

    def __str__(self) -> str:
        # Messages quote what workers, data and files contain; see formatting.
        text = super().__str__()
        if sys.version_info < (3, 11):  # which does not print notes
            text = "\n".join([text, *getattr(self, "__notes__", ())])
        return printable(text)

    if sys.version_info < (3, 11):

        def add_note(self, note: str) -> None:
            self.__notes__ = [*getattr(self, "__notes__", ()), note]


class ConfigurationError(DistributorError, ValueError):
    """An argument or a setting is invalid. Also a ``ValueError``."""


class CallError(ConfigurationError, TypeError):
    """An argument was passed by position where only keyword arguments are accepted. Also a ``TypeError``."""


class ClusterError(DistributorError):
    """The cluster, as configured, cannot do what was requested."""


class InsufficientSlotsError(ClusterError):
    """The cluster has fewer slots than the run needs simultaneously."""


class GpuConfigurationError(ClusterError, ValueError):
    """The cluster's GPU settings do not match the request. Also a ``ValueError``, as in 1.0.0."""


class EncryptionUnsupportedError(ClusterError):
    """Encryption is required, but not possible for this run."""


class RendezvousError(DistributorError):
    """The workers could not form a group."""


class RendezvousTimeoutError(RendezvousError):
    """Some workers did not join the group within ``start_timeout``."""


class DataError(DistributorError):
    """A DataFrame's columns or rows do not match what training or prediction requires."""


class BrokenInputError(DataError):
    """Spark could not deliver a worker's rows; Spark's own error on the driver gives the reason."""


class CheckpointError(DistributorError):
    """A checkpoint could not be written or read."""


class SerializationError(DistributorError):
    """A training function, argument, model or result cannot be serialised or deserialised."""


class ResultNotLoadedError(SerializationError):
    """Training has finished, but the function's return value cannot be loaded on the driver; the error keeps it.

    Args:
        message: Text with the reason and the path.
        data: See the attribute.
        path: See the attribute.

    Attributes:
        data: The pickled value; if it could not be pickled, a ``.npz`` archive of its models' weights.
        path: A file on the driver with the same bytes; ``""`` if it could not be written.
    """

    def __init__(self, message: str, data: bytes = b"", path: str = "") -> None:
        super().__init__(message)
        self.data, self.path = data, path

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.args[0], self.data, self.path), vars(self))  # includes __notes__


class CollectiveError(DistributorError):
    """A collective operation failed: a worker is gone, or called a different operation."""


class RunCancelledError(DistributorError):
    """The run was cancelled by the user."""


@dataclass(frozen=True)
class WorkerFailure:
    """Describes how one worker failed.

    Attributes:
        rank: The worker's rank.
        host: The host it ran on, as Spark names it.
        kind: How it failed, one of:

            - ``"exception"``: the training function raised an exception.
            - ``"exit"``: the training function ended the process.
            - ``"signal"``: the process was killed.
            - ``"result"``: the return value could not be serialised.
            - ``"startup"``: the worker failed before the training function was called.
            - ``"input"``: Spark could not deliver the worker's rows.
            - ``"peer"``: an operation failed because another worker had failed or disappeared.
            - ``"port"``: another process took the worker's port.
            - ``"lost"``: Spark lost the task, or the worker fell silent.
            - ``"stalled"``: the worker made no progress for ``stall_timeout`` seconds, or its process is suspended.
            - ``"stopped"``: the worker was stopped because another one failed.
        message: A short description.
        error_type: Class name of the exception, or ``""``.
        traceback: The remote traceback, or ``""``.
        log_tail: The last lines of the worker's output.
        exception: The original exception, or None if it could not be unpickled on the driver.
        place: Position in training as ``fit``, ``epoch`` and ``step``, counted from 0; empty outside of ``fit``.
        seconds: Time of the failure in seconds since the attempt started, by the driver's clock.
    """

    rank: int
    host: str
    kind: str
    message: str
    error_type: str = ""
    traceback: str = ""
    log_tail: tuple[str, ...] = ()
    exception: BaseException | None = None
    place: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class TrainingFailedError(DistributorError):
    """A worker failed, so the run failed.

    The original exception of the root cause, if it could be unpickled on the driver, is the ``__cause__``.

    Args:
        message: Text with the root cause's rank, host, traceback and last output lines.
        failures: The failures of all workers, by rank.
        root_cause: The failure that led to the others, or None if it is not known.

    Attributes:
        failures: The failures of all workers, by rank.
        root_cause: The failure that led to the others, or None if it is not known.
    """

    def __init__(
        self,
        message: str,
        failures: Mapping[int, WorkerFailure] | None = None,
        root_cause: WorkerFailure | None = None,
    ) -> None:
        super().__init__(message)
        self.failures: dict[int, WorkerFailure] = dict(failures or {})
        self.root_cause = root_cause

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.args[0], self.failures, self.root_cause), vars(self))  # includes __notes__


class WorkerDataError(TrainingFailedError, DataError):
    """A worker raised a :class:`DataError`: the rows do not match what the training function requires."""
