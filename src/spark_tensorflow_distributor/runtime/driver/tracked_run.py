"""One run from beginning to end, with its report and callbacks."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from ...config import RunnerConfig
from ...data.frames import is_dataframe
from ...errors import DistributorError, RunCancelledError
from ...formatting import one_line
from ...redaction import HIDDEN, names_a_secret, redacted
from ..specs import RunPlan
from .callbacks import CallbackList
from .control import RunControl
from .report import RunReport
from .run import Program, Run
from .spark import SparkGateway

_log = logging.getLogger(__name__)

_MAX_TEXT = 500
_MAX_ITEMS = 20


class TrackedRun:
    """A run that has been planned and can be executed once.

    Args:
        config: The runner's arguments.
        gateway: The Spark session.
        program: What the workers run.
        run_plan: The plan of the run.
        arguments: The arguments of the training function, for the report.
        callbacks: The runner's callbacks.

    Attributes:
        report: The report, which is updated during the run.
        control: The requests to end the run.
    """

    def __init__(
        self,
        config: RunnerConfig,
        gateway: SparkGateway,
        program: Program,
        run_plan: RunPlan,
        arguments: Mapping[str, Any],
        callbacks: CallbackList,
    ) -> None:
        self.control = RunControl()
        self.report = new_report(config, program.name, arguments, run_plan.num_tasks)
        self._plan, self._callbacks = run_plan, callbacks
        self._run = Run(config, gateway, program, self.report, callbacks, self.control)

    def execute(self) -> Any:
        """Train; return the value of rank 0, or raise the error of the run."""
        return follow(self.report, self._callbacks, lambda: self._run.execute(self._plan))


def follow(report: RunReport, callbacks: CallbackList, execute: Callable[[], Any]) -> Any:
    """Execute a run; record its outcome in the report, and call the callbacks for its beginning and end.

    Args:
        report: The report of the run.
        callbacks: The runner's callbacks.
        execute: Returns the value of rank 0, or raises the error of the run.
    """
    started, report.started_at = time.monotonic(), time.time()
    callbacks.call("on_run_begin", report)
    try:
        value = execute()
        report.succeeded, report.status = True, "succeeded"
    except BaseException as error:
        report.status, report.error = _status(error), one_line(error)
        raise
    finally:
        report.seconds = time.monotonic() - started
        if report.succeeded:
            callbacks.call("on_result", value)
        callbacks.call("on_run_end", report)
    return value


def without_frames(error: DistributorError) -> DistributorError:
    """Return an error that is being handled without its traceback, which goes to the log.

    The message says everything. The driver's frames would separate it from the line that called ``run``.
    """
    _log.debug("Where the error was raised on the driver:", exc_info=True)
    return error.with_traceback(None)


def new_report(config: RunnerConfig, function: str, arguments: Mapping[str, Any], num_tasks: int) -> RunReport:
    """Return the report of a run that is about to begin.

    Args:
        config: The runner's arguments.
        function: The name of the training function.
        arguments: Its arguments.
        num_tasks: Number of workers.
    """
    return RunReport(
        config.num_slots,
        num_tasks,
        function=function,
        arguments={name: plain(name, value) for name, value in arguments.items()},
        settings=changed_settings(config),
    )


def _status(error: BaseException) -> str:
    if isinstance(error, RunCancelledError):
        return "cancelled"
    return "failed" if isinstance(error, Exception) else "interrupted"


def plain(name: str, value: object) -> Any:
    """Return a value unchanged if JSON can represent it, else its type's name; "..." replaces possible secrets.

    A value may be secret if its name suggests this, also in nested mappings, in pairs of a name and a value, in the
    arguments of a script and within texts, or if it is a password in a URL. Long values are shortened.
    """
    if names_a_secret(name, value):
        return HIDDEN
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): plain(str(key), each) for key, each in list(value.items())[:_MAX_ITEMS]}
    if isinstance(value, list | tuple):
        shown = value[:_MAX_ITEMS]
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
            return [plain("", value[0]), plain(*value)]
        return [plain(_option(before), each) for before, each in zip(["", *shown], shown, strict=False)]
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        value = redacted(value)
        return value if len(value) <= _MAX_TEXT else f"{value[:_MAX_TEXT]}..."
    if is_dataframe(value):  # its repr may compute it
        return "DataFrame"
    return type(value).__name__


def _option(argument: object) -> str:
    """Return the name of a script's option if the next argument is its value, else ""."""
    is_option = isinstance(argument, str) and argument.startswith("-") and "=" not in argument
    return str(argument) if is_option else ""


def changed_settings(config: RunnerConfig) -> dict[str, Any]:
    """Return ``num_slots`` and the runner's arguments that differ from their defaults; of ``env``, only the names."""
    defaults = RunnerConfig(num_slots=config.num_slots)
    changed: dict[str, Any] = {"num_slots": config.num_slots}
    for name in (each.name for each in fields(config) if each.init):
        value = getattr(config, name)
        if value != getattr(defaults, name):
            changed[name] = ", ".join(sorted(value)) if name == "env" else plain(name, value)
    return changed
