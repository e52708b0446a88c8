"""How a trainer's process is, seen from outside: whether it runs, what it computes, and where its threads are."""

import contextlib
import os
import signal
import tempfile
import time
from typing import Any, BinaryIO

# The trainer's handler writes at once, whatever Python waits for; a process that is stopped never does.
_WRITE_SECONDS = 1.0
_LONGEST = 20_000


class Vitals:
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
