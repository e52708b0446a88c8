"""Decisions after a launch: the root cause, whether to launch again, which error to raise.

Pure, except that advice on a missing module looks for it on the driver.
"""

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
from ...formatting import position_text, printable_exception, rank_list, sentence
from ..failures import Failure
from ..process_tools import missing_tensorflow, package_title
from .launch import LaunchResult
from .modules import import_advice
from .tracebacks import hide_library_frames, shown_traceback

# How often a group may be launched again, without counting as a restart, because another process took a port.
LOST_PORT_LIMIT = 3

# TensorFlow's errors in a worker that has lost a peer: consequences, not causes.
_COLLATERAL = re.compile(
    r"UnavailableError|AbortedError|CancelledError|Connection reset by peer|Socket closed|failed to connect to all"
    r"|Collective ops is aborted|unhealthy|heartbeat|[Pp]eer|coordination service|/job:worker/",
)

# The pauses before a new attempt, in seconds: 1, 2, 4, ...
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0

# Exceptions that point to a mistake in the program rather than a fault of its environment.
_MISTAKES = ("AttributeError", "ImportError", "ModuleNotFoundError", "NameError", "NotImplementedError", "TypeError")
_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
# What PySpark raises in a process that has no session: the condition of an error, or the line of an assertion.
_NO_SESSION = re.compile(
    r"\[(CONTEXT_ONLY_VALID_ON_DRIVER|NO_ACTIVE_SESSION|NO_ACTIVE_OR_DEFAULT_SESSION|SESSION_OR_CONTEXT_NOT_EXISTS"
    r"|CONNECT_URL_NOT_SET)\]|assert SparkContext\._active_spark_context is not None"
)
_JAVA_LINE = re.compile(
    r"^\s+at \S+\(|^\s*[\w.$/<>]+\((\w+\.(java|scala):\d+|Native Method|Unknown Source)\)$|^\s*\.\.\. \d+ more"
    r"|^Caused by: |^Driver stacktrace|^An error occurred while calling \S+$"
)


def is_collateral(failure: Failure) -> bool:
    """Return whether a failure looks like the consequence of another worker's failure."""
    if failure.kind in ("stopped", "input", "peer"):
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
    """Return whether the launch failed only because another process took a worker's port."""
    rank = root_cause(result.failures)
    return rank is not None and result.failures[rank].kind == "port" and times < LOST_PORT_LIMIT


class RestartPolicy:
    """Decides whether a failed attempt is followed by another one, and after how long a pause.

    Args:
        max_restarts: The runner's argument.
    """

    def __init__(self, max_restarts: int) -> None:
        self._left = self._most = max_restarts
        self._last: tuple[str, ...] | None = None

    def pause(self, error: BaseException, *, calls_were_lost: bool = False) -> float | None:
        """Return the seconds to wait before the next attempt; None if there is none.

        If restarts are allowed but would not help or are used up, the error gets the reason as a note.

        Args:
            error: The error of the attempt.
            calls_were_lost: See :class:`LaunchResult`.
        """
        if not self._most:
            return None
        reason = self._reason_against(error, calls_were_lost)
        if reason is not None:
            if hasattr(error, "add_note"):  # on Python 3.10, only the library's own errors have it
                error.add_note(reason)
            return None
        self._left -= 1
        return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (self._most - self._left - 1))

    def _reason_against(self, error: BaseException, calls_were_lost: bool) -> str | None:
        if getattr(error, "was_cancelled", False):
            return "Not relaunched: the job was cancelled on purpose."
        # The same rows or the same argument would be rejected again.
        may_pass = isinstance(error, TrainingFailedError | RendezvousError)
        if not may_pass or isinstance(error, DataError):
            return f"Not relaunched: every attempt would end with this {type(error).__name__}."
        cause = getattr(error, "root_cause", None)
        if cause is not None and cause.error_type.endswith("OutOfStepError") and not calls_were_lost:
            return "Not relaunched: the workers would make different calls in every attempt."
        signature = _signature(error)
        if signature is not None and signature == self._last:
            return f"Not relaunched: the function raised the same exception twice {_where(error)}."
        self._last = signature
        if self._left <= 0:
            return f"Not relaunched: all max_restarts={self._most} restarts are used up."
        return None


def _signature(error: BaseException) -> tuple[str, ...] | None:
    """Return what identifies an exception of the user's function; None for any other failure."""
    cause = getattr(error, "root_cause", None)
    if cause is None or cause.kind != "exception":
        return None
    if not cause.place and cause.error_type not in _MISTAKES:
        return None  # it may have been raised at another step
    place = [str(cause.place.get(name)) for name in ("fit", "epoch", "step")]
    return (cause.error_type, _ADDRESS.sub("0x", cause.message), *place)


def _where(error: BaseException) -> str:
    place = getattr(error, "root_cause", None) and error.root_cause.place  # type: ignore[attr-defined]
    return f"at the same step ({position_text(place)})" if place else "at the same point"


def error_of(result: LaunchResult, config: RunnerConfig, num_tasks: int) -> BaseException:
    """Return the error to raise for a failed launch, with the original exception as its cause."""
    rank = root_cause(result.failures)
    if result.start_timed_out is not None:
        return _start_timeout(result.start_timed_out, config, num_tasks)
    if result.stop_reason is not None and all(failure.kind == "stopped" for failure in result.failures.values()):
        return TrainingFailedError(f"The run was stopped. {result.stop_reason}", result.worker_failures)
    if rank is None or (result.spark_error is not None and is_collateral(result.failures[rank])):
        return _spark_error(result, num_tasks)
    failures = result.worker_failures
    cause = failures[rank]
    raised = cause.exception
    # Python also prints an exception's cause.
    printable = None if raised is None else printable_exception(raised)
    if isinstance(raised, DistributorError) and printable is raised and cause.kind in ("startup", "result"):
        # The library's own errors are raised unchanged.
        raised.add_note(f"On rank {cause.rank} @ {cause.host}.")
        return raised
    kind = WorkerDataError if isinstance(raised, DataError) else TrainingFailedError
    error: DistributorError = _startup_error(cause) or kind(_describe(cause, failures, num_tasks), failures, cause)
    error.__cause__ = printable
    return error


def was_ended_by_spark(result: LaunchResult) -> bool:
    """Return whether Spark ended the job, and no worker had failed by itself."""
    rank = root_cause(result.failures)
    return result.spark_error is not None and (rank is None or is_collateral(result.failures[rank]))


def stopped_session_error(result: LaunchResult) -> ClusterError:
    """Return the error for a launch whose SparkSession was stopped."""
    return ClusterError(
        f"The SparkSession was stopped during the run, after {result.seconds:.0f} s: by spark.stop() in another thread "
        "or cell, or because the cluster manager ended the application. Run again with a new session; with "
        "checkpoint_dir, it resumes."
    )


def _startup_error(cause: WorkerFailure) -> DistributorError | None:
    """Return a specific error for a startup failure with a known remedy, else None."""
    if cause.kind != "startup" or cause.error_type not in ("ModuleNotFoundError", "ImportError"):
        return None
    where = f"{cause.message} on rank {cause.rank} @ {cause.host}"
    missing = _missing_module(cause)
    package = package_title(missing)
    if package is not None:
        text = missing_tensorflow("the executors' Python", where, package)
        return ClusterError(f"{text}\n{hide_library_frames(cause.traceback)}")
    advice = import_advice(missing) if missing else "Do the executors have the driver's versions of its packages?"
    return SerializationError(
        f"The training function could not be loaded: {sentence(where)} {advice}\n{hide_library_frames(cause.traceback)}"
    )


def _missing_module(cause: WorkerFailure) -> str:
    """Return the name of the module that a worker could not import; "" if it failed otherwise."""
    found = re.search(r"No module named '([\w.]+)'", cause.message)
    return found[1] if found and cause.error_type == "ModuleNotFoundError" else ""


def _describe(cause: WorkerFailure, failures: Mapping[int, WorkerFailure], num_tasks: int) -> str:
    where = f" in {position_text(cause.place)}" if cause.place else ""
    lines = [f"Rank {cause.rank} @ {cause.host} failed after {cause.seconds:.1f} s{where}: {cause.message}"]
    if missing := _missing_module(cause):
        lines.append(import_advice(missing))
    if cause.kind == "exception" and _NO_SESSION.search(f"{cause.message}\n{cause.traceback}"):
        lines.append(
            "The training function uses Spark, but a SparkSession exists only on the driver. Pass a DataFrame to run() "
            "as a keyword argument, and the function receives its rows; or compute before run(), and pass the result."
        )
    if cause.kind == "stalled":
        lines += [each.message for each in failures.values() if each.kind == "stalled" and each is not cause]
    title = "Threads of" if cause.kind == "stalled" else "Traceback on"
    shown = shown_traceback(cause.traceback, cause.message)
    if shown:
        lines += ["", f"{title} rank {cause.rank}:", shown]
    if cause.kind == "stalled":
        for each in failures.values():
            if each.traceback and each is not cause:
                lines += ["", f"Threads of rank {each.rank}:", each.traceback.rstrip()]
    if cause.log_tail:
        lines += ["", f"Last lines of rank {cause.rank}:", *(f"  {line}" for line in cause.log_tail[-15:])]
    others = _others_text(cause, failures, num_tasks)
    if others:
        lines += ["", others]
    return "\n".join(lines)


def _others_text(cause: WorkerFailure, failures: Mapping[int, WorkerFailure], num_tasks: int) -> str:
    """Say which other ranks failed, and whether with the same error."""

    def text(failure: WorkerFailure) -> tuple[str, str]:
        return failure.error_type, _ADDRESS.sub("0x", failure.message)

    others = [failure for failure in failures.values() if failure.rank != cause.rank and failure.kind != "stopped"]
    alike = [failure.rank for failure in others if text(failure) == text(cause)]
    different = [failure.rank for failure in others if failure.rank not in alike]
    if alike and len(alike) == num_tasks - 1:
        return f"All {num_tasks} ranks failed with this error."
    parts = [f"{rank_list(alike).capitalize()} failed with the same error."] if alike else []
    parts += (
        [f"{rank_list(different).capitalize()} failed with other errors; see this error's .failures."]
        if different
        else []
    )
    return " ".join(parts)


def _start_timeout(connected: int, config: RunnerConfig, num_tasks: int) -> RendezvousTimeoutError:
    if connected:
        why = (
            "A Spark task may be stuck before it reaches the library (a slow network file system, an interpreter that "
            "does not start)"
        )
    else:
        why = "The cluster's slots are probably busy with other jobs, or there are fewer than the run needs"
    return RendezvousTimeoutError(
        f"{connected} of {num_tasks} workers connected within start_timeout={config.start_timeout:g} s. {why}. Look at "
        "the stage in Spark's web UI; then free slots, lower num_slots, or raise start_timeout."
    )


def _spark_error(result: LaunchResult, num_tasks: int) -> BaseException:
    """Return the error for a job that Spark itself ended, without its Java stack trace."""
    text = str(result.spark_error or "the job returned no result")
    if result.cancelled:
        error = TrainingFailedError("The run's Spark job was cancelled, but not by this run.", {}, None)
        error.was_cancelled = True  # type: ignore[attr-defined]
        return error
    if "maxResultSize" in text:
        return SerializationError(f"The result is larger than spark.driver.maxResultSize. {brief(text)}")
    missing = re.search(r"ModuleNotFoundError: No module named '(\w+)'", text)
    if missing or "PYTHON_VERSION_MISMATCH" in text or "PACKAGE_NOT_INSTALLED" in text:
        return ClusterError(
            f"Spark's Python workers cannot run the task: {brief(text)}\nThe executors need pyarrow, pandas and "
            "TensorFlow, and the driver's Python version. They use the interpreter that spark.pyspark.python or the "
            "environment variable PYSPARK_PYTHON names when the application starts, or else the 'python3' in their "
            "PATH. With a local master, set PYSPARK_PYTHON to sys.executable."
        )
    if result.frames and not result.hosts and not result.reports:
        # No worker has started. Either the DataFrames' own plan failed; then the user needs its error.
        if result.spark_error is not None:
            return result.spark_error
        # Or Spark knew that there are no rows, and skipped the stage.
        names = ", ".join(map(repr, result.frames))
        what = f"DataFrames {names} have" if len(result.frames) > 1 else f"DataFrame {names} has"
        return DataError(f"The {what} no rows. Did a filter, a join or limit(0) drop all of them?")
    failures = dict(result.worker_failures)
    gone = [rank for rank in range(num_tasks) if rank not in result.reports and rank not in result.failures]
    for rank in gone:
        failures[rank] = WorkerFailure(rank, result.hosts.get(rank, "?"), "lost", "Spark lost this task.")
    return TrainingFailedError(
        f"An executor or its Python worker was lost (ranks without a report: {gone}): a host went down, a container "
        "was killed for using too much memory (spark.executor.memoryOverhead), or a task was killed from outside. See "
        f"the executors' logs.\nSpark ended the run: {brief(text)}",
        failures,
        failures[gone[0]] if len(gone) == 1 else None,
    )


def brief(text: str, longest: int = 1500) -> str:
    """Return a Spark error's text without Java stack traces and py4j's description of the call."""
    lines = [line for line in text.splitlines() if line.strip() and not _JAVA_LINE.match(line)]
    return "\n".join(lines).removeprefix(": ")[:longest]
