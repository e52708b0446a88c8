"""Tools for processes: environment, identity, termination, and starting the fork server."""

import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Iterator, Mapping

from ..formatting import sentence

_PR_SET_PDEATHSIG = 1

# The program of `python -c` that becomes a fork server. It reads its start-up data from stdin and makes this package
# importable.
BOOT = (
    "import json, sys; boot = json.load(sys.stdin); sys.path[:] = boot['path']; space = {'__name__': '_importer'}; "
    "exec(compile(boot['installer'], '_importer.py', 'exec'), space); "
    "space['install'](boot['package'], boot['sources']); "
    "from spark_tensorflow_distributor.runtime.trainer import forkserver; forkserver.main(boot)"
)

INSTALL_IT = (
    "Install it for the interpreter that spark.pyspark.python (or PYSPARK_PYTHON) names on the executors, or point "
    "that setting to an interpreter that has it."
)


def package_title(module: str) -> str | None:
    """Return what to call the package of a module without which no training starts; None for any other module."""
    return {"tensorflow": "TensorFlow", "keras": "Keras"}.get(module.split(".")[0])


def missing_tensorflow(interpreter: str, reason: object, package: str = "TensorFlow", advice: str = INSTALL_IT) -> str:
    """Return the message for a failed import of TensorFlow or Keras.

    Args:
        interpreter: The interpreter, in words.
        reason: The exception, or its text.
        package: The name of the package.
        advice: What to do.
    """
    return f"{package} cannot be imported by {interpreter}: {sentence(reason)} {advice}"


@contextlib.contextmanager
def environment(changes: Mapping[str, str | None], *, restore_all: bool = False) -> Iterator[None]:
    """Change environment variables, and restore them afterwards.

    Args:
        changes: Values by name; None unsets a variable.
        restore_all: Whether to undo every other change that is made in the meantime, too.
    """
    before = dict(os.environ)
    _set_variables(changes)
    try:
        yield
    finally:
        names = {*before, *os.environ} if restore_all else changes
        _set_variables({name: before.get(name) for name in names})


@contextlib.contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Pause garbage collection during a large import.

    An import creates hardly any garbage, but every collection examines all objects again: with collections, importing
    TensorFlow 2.21 and Keras takes 7.8 s of CPU time instead of 5.0 s, and saves no memory.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _set_variables(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def allow_open_files(count: int) -> None:
    """Raise this process's limit on open files to ``count``, as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # the system's own limit is lower, as on macOS
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def kill_group(pid: int) -> None:
    """Kill a trainer and everything it has started, if they are still running."""
    # SIGKILL, because TensorFlow swallows SIGTERM. The group may not exist yet (just after the fork), or no longer.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends for whatever reason (Linux only)."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the call
        os._exit(1)


def peer_uid(connection: socket.socket) -> int | None:
    """Return the user id at the other end of a Unix socket; None if the system does not report it."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", data)[1]
    return uid


def start_time(pid: int) -> str:
    """Return when a process started, in the kernel's ticks; "" if that is unknown or the process has ended.

    The kernel reuses a pid, but never the same pid with the same start time. A zombie counts as ended.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def is_alive(pid: int, started: str) -> bool:
    """Return whether this process, and not a later one with the same pid, is still running."""
    if started:
        return start_time(pid) == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
