"""After a launch: what failed, whether to launch again, and what to tell the user. Pure decisions."""

import re
from collections.abc import Mapping

from ...config import RunnerConfig
from ...errors import (
    ClusterError,
    DataError,
    DistributorError,
    RendezvousError,
    RendezvousTimeoutError,
    SerializationError,
    TrainingFailedError,
    WorkerDataError,
    WorkerFailure,
)
from ..failures import Failure
from .launch import LaunchResult
from .tracebacks import hide_own_frames, without_message

# A port was taken between its choice and its use: the group meets again, and nobody is bothered.
MEET_AGAIN_LIMIT = 3

# What TensorFlow says in a worker whose peer has gone: a consequence, not a cause.
_COLLATERAL = re.compile(
    r"UnavailableError|AbortedError|CancelledError|Connection reset by peer|Socket closed|failed to connect to all"
    r"|Collective ops is aborted|unhealthy|heartbeat|[Pp]eer|coordination service|/job:worker/",
)

# The pauses before a new attempt, in seconds: 1, 2, 4, ...
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0

# What a program raises for its own mistakes, and not for the world's.
_MISTAKES = ("AttributeError", "ImportError", "ModuleNotFoundError", "NameError", "NotImplementedError", "TypeError")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
_JAVA_LINE = re.compile(
    r"^\s+at \S+\(|^\s*\.\.\. \d+ more|^Caused by: |^Driver stacktrace|^An error occurred while calling \S+$"
)


def is_collateral(failure: Failure) -> bool:
    """Return whether a failure looks like the consequence of another worker's."""
    if failure.kind in ("stopped", "input"):
        return True
    is_tensorflows = "errors_impl" in failure.error_type
    return is_tensorflows and bool(_COLLATERAL.search(f"{failure.error_type} {failure.message}"))


def root_cause(failures: Mapping[int, Failure]) -> int | None:
    """Return the rank whose failure caused the others: the first that is not collateral, else the first of all."""

    def order(rank: int) -> tuple[bool, bool, float, int]:
        failure = failures[rank]
        return failure.kind == "stopped", is_collateral(failure), failure.seconds, rank

    return min(failures, key=order, default=None)


def lost_a_port(result: LaunchResult, times: int) -> bool:
    """Whether the launch failed for nothing but a port that another process took meanwhile."""
    rank = root_cause(result.failures)
    return rank is not None and result.failures[rank].kind == "port" and times < MEET_AGAIN_LIMIT


class RestartPolicy:
    """Whether a run goes on after an attempt has failed, and after which pause.

    Args:
        max_restarts: of the runner.
    """

    def __init__(self, max_restarts: int) -> None:
        self._left = self._most = max_restarts
        self._last: tuple[str, ...] | None = None

    def pause(self, error: BaseException) -> float | None:
        """Seconds to wait before the next attempt; None where there is to be none: a note in the error says why."""
        if not self._most:
            return None
        reason = self._reason_against(error)
        if reason is not None:
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(reason)
            return None
        self._left -= 1
        return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (self._most - self._left - 1))

    def _reason_against(self, error: BaseException) -> str | None:
        if getattr(error, "was_cancelled", False):
            return "Not launched again: the job was cancelled on purpose."
        # The same rows would be refused again, and the same argument.
        is_mendable = isinstance(error, TrainingFailedError | RendezvousError)
        if not is_mendable or isinstance(error, DataError):
            return f"Not launched again: a {type(error).__name__} would come back in every attempt."
        signature = _signature(error)
        if signature is not None and signature == self._last:
            return f"Not launched again: the function has raised the same exception twice {_where(error)}."
        self._last = signature
        if self._left <= 0:
            return f"Not launched again: max_restarts={self._most} is used up."
        return None


def _signature(error: BaseException) -> tuple[str, ...] | None:
    """What makes an exception of the user's function the same as another; None for every other failure."""
    cause = getattr(error, "root_cause", None)
    if cause is None or cause.kind != "exception":
        return None
    if not cause.place and cause.error_type not in _MISTAKES:
        return None  # nobody knows whether it was at the same step
    place = [str(cause.place.get(name)) for name in ("fit", "epoch", "step")]
    return (cause.error_type, _ADDRESS.sub("0x", cause.message), *place)


def _where(error: BaseException) -> str:
    place = getattr(error, "root_cause", None) and error.root_cause.place  # type: ignore[attr-defined]
    return f"at the same step ({place_words(place)})" if place else "at the same place"


def place_words(place: Mapping[str, int]) -> str:
    """Where ``fit`` was, in words, counted from 1 as Keras shows it."""
    fit = f"fit {place['fit'] + 1}, " if place["fit"] else ""
    return f"{fit}epoch {place['epoch'] + 1}, after step {place['step']}"


def error_of(result: LaunchResult, config: RunnerConfig, num_tasks: int) -> BaseException:
    """The error that a failed launch is raised as, with the original exception as its cause."""
    rank = root_cause(result.failures)
    if result.start_timed_out is not None:
        return _start_timeout(result.start_timed_out, config, num_tasks)
    if result.stop_reason is not None and all(failure.kind == "stopped" for failure in result.failures.values()):
        return TrainingFailedError(f"The run was ended. {result.stop_reason}", result.worker_failures)
    if rank is None or (result.spark_error is not None and is_collateral(result.failures[rank])):
        return _spark_error(result, num_tasks)
    failures = result.worker_failures
    cause = failures[rank]
    own = cause.exception
    if isinstance(own, DistributorError) and cause.kind in ("startup", "result"):
        # The library's own errors are raised as themselves.
        own.add_note(f"On rank {cause.rank} @ {cause.host}.") if hasattr(own, "add_note") else None
        return own
    kind = WorkerDataError if isinstance(own, DataError) else TrainingFailedError
    error: DistributorError = _startup_error(cause) or kind(_describe(cause, failures), failures, cause)
    error.__cause__ = own
    return error


def _startup_error(cause: WorkerFailure) -> DistributorError | None:
    """What goes wrong before the function is called and has a known remedy."""
    if cause.kind != "startup" or cause.error_type not in ("ModuleNotFoundError", "ImportError"):
        return None
    where = f"{cause.message} on rank {cause.rank} @ {cause.host}"
    missing = getattr(cause.exception, "name", None) or ""
    if missing.split(".")[0] in ("tensorflow", "keras"):
        return ClusterError(
            f"TensorFlow cannot be imported by the executors' Python: {where}. Install it for the interpreter that "
            "spark.pyspark.python (or PYSPARK_PYTHON) names on the executors, or let that setting name the one which "
            f"has it.\n{cause.traceback}"
        )
    return SerializationError(
        f"The training function could not be loaded: {where}. A module that it needs is missing on the executors. "
        "Install it there, ship it with SparkContext.addPyFile (SparkSession.addArtifact on Connect), or define what "
        f"is used in the function's own file.\n{cause.traceback}"
    )


def _describe(cause: WorkerFailure, failures: Mapping[int, WorkerFailure]) -> str:
    where = f" in {place_words(cause.place)}" if cause.place else ""
    lines = [f"Rank {cause.rank} @ {cause.host} failed after {cause.seconds:.1f} s{where}: {cause.message}"]
    if cause.kind == "stalled":
        lines += [each.message for each in failures.values() if each.kind == "stalled" and each is not cause]
    title = "Threads of" if cause.kind == "stalled" else "Traceback on"
    shown = without_message(hide_own_frames(cause.traceback), cause.message)
    if shown:
        lines += ["", f"{title} rank {cause.rank}:", shown]
    if cause.kind == "stalled":
        for each in failures.values():
            if each.traceback and each is not cause:
                lines += ["", f"Threads of rank {each.rank}:", each.traceback.rstrip()]
    if cause.log_tail:
        lines += ["", f"Last lines of rank {cause.rank}:", *(f"  {line}" for line in cause.log_tail[-15:])]
    others = [f.rank for f in failures.values() if f.rank != cause.rank and f.kind != "stopped"]
    if others:
        shown = ", ".join(map(str, others[:10])) + (", ..." if len(others) > 10 else "")
        lines += ["", f"Rank{'s' * (len(others) > 1)} {shown} failed too; see .failures of this error."]
    return "\n".join(lines)


def _start_timeout(came: int, config: RunnerConfig, num_tasks: int) -> RendezvousTimeoutError:
    if came:
        why = (
            "A Spark task may hang before it reaches the library (a slow network file system, an interpreter that does "
            "not start)"
        )
    else:
        why = "The slots of the cluster are probably busy with other jobs, or fewer than the run needs"
    return RendezvousTimeoutError(
        f"{came} of {num_tasks} workers came within start_timeout={config.start_timeout:g} s. {why}. See the stage in "
        "Spark's web page; free slots, ask for fewer num_slots, or raise start_timeout."
    )


def _spark_error(result: LaunchResult, num_tasks: int) -> BaseException:
    """The job ended in Spark's own hands: say what that means, without its Java stack trace."""
    text = str(result.spark_error or "the job gave no result")
    if result.cancelled:
        error = TrainingFailedError("The run's Spark job was cancelled from outside the run.", {}, None)
        error.was_cancelled = True  # type: ignore[attr-defined]
        return error
    if "maxResultSize" in text:
        return SerializationError(f"The result is larger than spark.driver.maxResultSize. {brief(text)}")
    missing = re.search(r"ModuleNotFoundError: No module named '(\w+)'", text)
    if missing or "PYTHON_VERSION_MISMATCH" in text or "PACKAGE_NOT_INSTALLED" in text:
        return ClusterError(
            f"Spark's Python workers cannot run the task: {brief(text)}\nThe library needs pyarrow (and pandas) "
            "beside TensorFlow on the executors, in the driver's Python version. Which interpreter they use is set "
            "by spark.pyspark.python or the environment variable PYSPARK_PYTHON when the application starts; without "
            "it, it is whatever 'python3' means there. For local mode set PYSPARK_PYTHON to sys.executable."
        )
    if result.had_data and result.spark_error is not None and not result.hosts:
        # No worker has started, so it is the DataFrames' own plan that failed: its error is the user's to see.
        return result.spark_error
    failures = dict(result.worker_failures)
    gone = [rank for rank in range(num_tasks) if rank not in result.reports and rank not in result.failures]
    for rank in gone:
        failures[rank] = WorkerFailure(rank, result.hosts.get(rank, "?"), "lost", "Spark lost this task.")
    return TrainingFailedError(
        f"An executor or its Python worker was lost (ranks without a report: {gone}): a host that went away, a "
        "container killed for its memory (spark.executor.memoryOverhead), or a task killed from outside. The "
        f"executors' logs tell which.\nSpark ended the run: {brief(text)}",
        failures,
        failures[gone[0]] if len(gone) == 1 else None,
    )


def brief(text: str, longest: int = 1500) -> str:
    """A Spark error without its Java stack traces, and without py4j's word on which call it came from."""
    lines = [line for line in text.splitlines() if line.strip() and not _JAVA_LINE.match(line)]
    return "\n".join(lines).removeprefix(": ")[:longest]
