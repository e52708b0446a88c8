"""Observes a trainer's process from outside: its state, its stacks, and how it ended."""

import contextlib
import os
import signal
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

from ...formatting import first_line, gibibytes
from ..failures import Failure
from ..wire import Message

# The trainer's signal handler writes at once, even if Python is blocked in a call; a stopped process never writes.
_WRITE_SECONDS = 1.0
_MAX_STACKS_CHARS = 20_000

# The states that Linux reports in /proc.
_STATES = {"R": "running", "S": "sleeping", "D": "waiting for a disk", "T": "stopped", "t": "traced", "Z": "ended"}


@dataclass
class TrainerOutcome:
    """How a trainer ended.

    Attributes:
        failure: None if the function returned.
        result_bytes: Size of the pickled value in the result file.
        exit: Text for the report ("ok", "exit status 3", "killed by signal 9 (SIGKILL)", "stopped").
        peak_rss: Peak resident set size in bytes.
        phases: When each phase began, in seconds since the epoch.
        warnings: Warnings shown to the user.
        accumulated: What the function added to accumulators; see ``spark_objects.accumulated``.
        measured: ``times`` and ``steps`` for the WorkerReport, if the trainer has sent them.
    """

    failure: Failure | None = None
    result_bytes: int = 0
    exit: str = "ok"
    peak_rss: int = 0
    phases: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    accumulated: str = ""
    measured: dict[str, Any] = field(default_factory=dict)

    def conclude(self, rank: int, host: str, outcome: Message | None, exited: Message | None) -> None:
        """Record how the trainer ended.

        Args:
            rank: The worker's rank.
            host: The worker's host.
            outcome: The outcome that the trainer reported, or None.
            exited: The exit that the fork server reported, or None if the trainer is still running.
        """
        if outcome is not None:
            self.measured = {name: outcome[name] for name in ("times", "steps") if name in outcome}
        if outcome is not None and "failure" in outcome:
            self.failure = Failure.from_json(outcome["failure"])
            self.exit = first_line(self.failure.message, 200)
        elif outcome is not None:
            self.result_bytes = int(outcome.get("size", 0))
            self.accumulated = str(outcome.get("accumulated", ""))
        elif exited is None:
            self.exit = "stopped"
        elif "error" in exited:
            self.exit = exited["error"]
            message = f"The trainer is gone: {self.exit}. It probably ran out of memory."
            self.failure = Failure(rank, host, "signal", message)
        else:
            self.peak_rss = int(exited.get("peak_rss", 0))
            kind, self.exit, message = explain_exit(int(exited["code"]), self.peak_rss)
            self.failure = Failure(rank, host, kind, message)


class ExitCause(NamedTuple):
    """Why a process ended: the kind of ``WorkerFailure``, a summary, and a full sentence."""

    kind: str
    summary: str
    message: str


def explain_exit(code: int, peak_rss: int) -> ExitCause:
    """Explain the exit of a trainer that ended without reporting an outcome.

    Args:
        code: The exit status, or the negative number of the signal.
        peak_rss: Peak resident set size in bytes.
    """
    peak = f"peak RSS {gibibytes(peak_rss)}" if peak_rss else "peak RSS unknown"
    if code >= 0:
        summary = f"exit status {code}"
        message = (
            f"The trainer's process ended with {summary} before the function returned "
            f"(os._exit, or a library that calls exit; {peak})."
        )
        return ExitCause("exit", summary, message)
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    summary = f"killed by signal {-code} ({name})"
    if -code == signal.SIGKILL:
        why = (
            "most likely by the out-of-memory killer of the kernel or the cluster manager. Give the workers "
            "more memory (spark.executor.memoryOverhead), use a smaller batch, or run fewer workers per host"
        )
    elif -code in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE):
        why = "a crash in native code; the last lines of its output show Python's stack at that moment"
    else:
        why = "sent by another process or by the function itself"
    return ExitCause("signal", summary, f"The trainer was {summary}, {why} ({peak}).")


class TrainerProbe:
    """Observes a trainer's process.

    Args:
        directory: Where to keep the unnamed file to which the trainer writes its stacks.
    """

    def __init__(self, directory: str) -> None:
        self.file: BinaryIO = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (closed by close)
        self._due: float | None = None

    def state(self, pid: int | None) -> dict[str, str | float]:
        """Return the process's ``state`` ("running", ...), ``cpu`` in seconds and ``rss`` in bytes.

        The result is empty if there is no /proc.
        """
        if pid is None:
            return {}
        with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
            ticks = int(fields[11]) + int(fields[12])
            return {
                "state": _STATES.get(fields[0], fields[0]),
                "cpu": round(ticks / os.sysconf("SC_CLK_TCK"), 1),
                "rss": int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
            }
        return {}

    def request_stacks(self, pid: int | None) -> None:
        """Make the trainer write the stacks of all its threads."""
        if self._due is not None:
            return
        self._due = time.monotonic() + _WRITE_SECONDS
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGUSR2)

    def stacks(self, pid: int | None) -> Message | None:
        """Return a message with the requested stacks, once they are due; else None."""
        if self._due is None or time.monotonic() < self._due:
            return None
        self._due = None
        self.file.seek(0)
        text = self.file.read().decode(errors="replace")
        return {"type": "stacks", "stacks": text[-_MAX_STACKS_CHARS:], **self.state(pid)}

    def close(self) -> None:
        self.file.close()
