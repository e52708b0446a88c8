"""What the exit of a trainer's process means. Pure."""

import signal
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Ending:
    """How a trainer ended.

    Attributes:
        failure: a record (see ``protocol.failure_record``); None where the function returned.
        result_bytes: size of the pickled value in the result file.
        exit: words for the report ("ok", "exit status 3", "killed by signal 9 (SIGKILL)", "stopped").
        peak_rss: bytes.
        phases: when each phase began, seconds since the epoch.
    """

    failure: dict[str, Any] | None = None
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
            "likely out of memory: the kernel and cluster managers end a process so. Give the workers more memory "
            "(spark.executor.memoryOverhead), use a smaller batch, or run fewer workers on a host"
        )
    elif -code in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE):
        why = "a crash in native code; the last lines hold Python's stack at that moment"
    else:
        why = "sent by another process, or by the function itself"
    return "signal", short, f"The trainer was {short}, {why} ({peak})."
