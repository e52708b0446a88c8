"""A trainer's process as seen from outside: its state, its stacks, and how it ended."""

import contextlib
import os
import signal
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ..failures import Failure


@dataclass
class TrainerOutcome:
    """How a trainer ended.

    Attributes:
        failure: None if the function returned.
        result_bytes: size of the pickled value in the result file.
        exit: words for the report ("ok", "exit status 3", "killed by signal 9 (SIGKILL)", "stopped").
        peak_rss: peak resident set size in bytes.
        phases: when each phase began, in seconds since the epoch.
        warnings: what the user was warned about.
    """

    failure: Failure | None = None
    result_bytes: int = 0
    exit: str = "ok"
    peak_rss: int = 0
    phases: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def explain_exit(code: int, peak_rss: int) -> tuple[str, str, str]:
    """Kind, short words and full words for a trainer that ended without an outcome.

    Args:
        code: exit status, or minus the signal's number.
        peak_rss: bytes.
    """
    peak = f"peak RSS {peak_rss / 2**30:.1f} GiB" if peak_rss else "peak RSS unknown"
    if code >= 0:
        short = f"exit status {code}"
        message = (
            f"The trainer's process ended with {short} before the function returned "
            f"(os._exit, or a library that calls exit; {peak})."
        )
        return "exit", short, message
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    short = f"killed by signal {-code} ({name})"
    if -code == signal.SIGKILL:
        why = (
            "most likely by the out-of-memory killer of the kernel or the cluster manager. Give the workers "
            "more memory (spark.executor.memoryOverhead), use a smaller batch, or run fewer workers on a host"
        )
    elif -code in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE):
        why = "a crash in native code; the last lines hold Python's stack at that moment"
    else:
        why = "sent by another process, or by the function itself"
    return "signal", short, f"The trainer was {short}, {why} ({peak})."


# The trainer's handler writes at once, whatever Python waits for; a process that is stopped never does.
_WRITE_SECONDS = 1.0
_LONGEST = 20_000


class TrainerProbe:
    """Of one trainer.

    Args:
        directory: where its stacks are written, to a file without a name.
    """

    def __init__(self, directory: str) -> None:
        self.file: BinaryIO = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (closed by close)
        self._due: float | None = None

    def facts(self, pid: int | None) -> dict[str, Any]:
        """State ("running", "sleeping", "stopped", ...) and seconds of CPU so far; nothing where there is no /proc."""
        if pid is None:
            return {}
        with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
            ticks = int(fields[11]) + int(fields[12])
            return {"state": _STATES.get(fields[0], fields[0]), "cpu": round(ticks / os.sysconf("SC_CLK_TCK"), 1)}
        return {}

    def ask(self, pid: int | None) -> None:
        """Have the stacks of all threads written."""
        if self._due is not None:
            return
        self._due = time.monotonic() + _WRITE_SECONDS
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGUSR2)

    def answer(self, pid: int | None) -> dict[str, Any] | None:
        """The stacks, a second after they were asked for; None before."""
        if self._due is None or time.monotonic() < self._due:
            return None
        self._due = None
        self.file.seek(0)
        text = self.file.read().decode(errors="replace")
        return {"type": "stacks", "stacks": text[-_LONGEST:], **self.facts(pid)}

    def close(self) -> None:
        self.file.close()


_STATES = {"R": "running", "S": "sleeping", "D": "waiting for a disk", "T": "stopped", "t": "traced", "Z": "ended"}
