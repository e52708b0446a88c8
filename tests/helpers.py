"""Helpers for tests in several folders; importable on the workers, too (see ``WORKER_PATH``)."""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_HERE = Path(__file__).parent
STUBS = str(_HERE / "stubs")
# PYTHONPATH of workers that train with the stand-in for TensorFlow.
WORKER_PATH = os.pathsep.join([STUBS, str(_HERE)])

# Java options: no JVM here lives long enough to benefit from the optimising compiler or the parallel collector.
QUICK_JVM = f"-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Djava.io.tmpdir={tempfile.gettempdir()}"
# scripts/test makes this archive. A JVM that it does not fit ignores it, and would say so in its output.
_CLASSES = Path(sys.prefix) / "spark-classes.jsa"
if _CLASSES.exists() and " " not in str(_CLASSES):
    QUICK_JVM += f" -XX:SharedArchiveFile={_CLASSES} -Xlog:disable"


class OwnError(Exception):
    """A user's exception with constructor arguments."""

    def __init__(self, code, text):
        super().__init__(code, text)
        self.code = code


def processes(pattern: str) -> dict[int, str]:
    """Return the running processes, without zombies, whose command line matches the regular expression."""
    found = {}
    for line in subprocess.run(["ps", "-wweo", "pid=,stat=,args="], capture_output=True, text=True).stdout.splitlines():
        pid, state, args = line.split(None, 2)
        if re.search(pattern, args) and not state.startswith("Z"):
            found[int(pid)] = args
    return found


def clock_of(monkeypatch, module, now: float = 100.0):
    """Stop the monotonic clock of a module; return a function that advances it by some seconds."""
    time_now = [now]
    monkeypatch.setattr(module.time, "monotonic", lambda: time_now[0])

    def wait(seconds):
        time_now[0] += seconds

    return wait


def wait_until(condition, seconds: float = 10.0) -> bool:
    """Return whether ``condition()`` becomes true within ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return bool(condition())


def is_running(pid: int) -> bool:
    """Return whether the process is running; a zombie is not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
