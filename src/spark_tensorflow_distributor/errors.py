"""The exceptions of this library.

    DistributorError
    ├ ConfigurationError (also ValueError)
    ├ ClusterError
    │ ├ InsufficientSlotsError
    │ ├ GpuConfigurationError (also ValueError)
    │ └ EncryptionUnsupportedError
    ├ RendezvousError
    │ └ RendezvousTimeoutError
    ├ DataError
    ├ CheckpointError
    ├ SerializationError
    └ TrainingFailedError (.failures by rank, .root_cause)
      └ WorkerDataError (also DataError)

Every message says what happened, the value found, the likely cause, and the setting to change. All of them
pickle, and nothing is imported here: the driver, Spark's Python worker and the trainer all raise them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class DistributorError(Exception):
    """Base of every error that this library raises on purpose."""


class ConfigurationError(DistributorError, ValueError):
    """An argument or a setting is wrong. Also a ``ValueError``."""


class ClusterError(DistributorError):
    """The cluster, as it is, cannot run what was asked for."""


class InsufficientSlotsError(ClusterError):
    """The cluster has fewer slots than the run needs at the same time."""


class GpuConfigurationError(ClusterError, ValueError):
    """The GPU settings of the cluster do not fit. Also a ``ValueError``, which 1.0.0 raised here."""


class EncryptionUnsupportedError(ClusterError):
    """The cluster asks for encryption, which TensorFlow's own traffic does not have."""


class RendezvousError(DistributorError):
    """The workers could not meet."""


class RendezvousTimeoutError(RendezvousError):
    """The workers did not all meet within ``start_timeout``."""


class DataError(DistributorError):
    """The rows of a DataFrame do not fit what training asked for."""


class BrokenInputError(DataError):
    """Spark could not deliver a worker's rows; what Spark says itself, at the driver, is the reason."""


class CheckpointError(DistributorError):
    """A checkpoint could not be written or read."""


class SerializationError(DistributorError):
    """The training function, an argument or a result cannot travel between the processes."""


@dataclass(frozen=True)
class WorkerFailure:
    """How one worker failed.

    Attributes:
        rank: the worker's rank.
        host: the host that it ran on, as Spark names it.
        kind: ``"exception"`` (the function raised), ``"exit"`` (it ended the process), ``"signal"`` (the process
            was killed), ``"result"`` (the returned value cannot travel), ``"startup"`` (it failed before the
            function was called), ``"port"`` (its port was taken by another process), ``"lost"`` (Spark lost the
            task, or nothing was heard of it any more), ``"stalled"`` (it made no progress) or ``"stopped"`` (it was
            ended because another worker failed).
        error_type: name of the exception's class, or ``""``.
        message: one line or a few.
        traceback: the remote traceback, or ``""``.
        log_tail: the worker's last output lines.
        exception: the original exception where it could be rebuilt at the driver, else None.
        place: where ``fit`` was: ``fit``, ``epoch`` and ``step``, counted from 0; empty outside of it.
        seconds: seconds since the start of the attempt, on the driver's clock.
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
    """A worker failed, and with it the run.

    Raised ``from`` the original exception where that could be rebuilt at the driver.

    Args:
        message: the text, with the root cause's rank, host, traceback and last lines.
        failures: every worker's failure, by rank.
        root_cause: the failure that the others follow from.
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
        return (type(self), (self.args[0], self.failures, self.root_cause))


class WorkerDataError(TrainingFailedError, DataError):
    """The training function asked for something that the rows do not fit: a :class:`DataError`, raised on a worker."""
