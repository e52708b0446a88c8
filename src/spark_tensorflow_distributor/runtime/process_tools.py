"""What agents and trainers know of processes: which they are, how to end them, and how one of ours is started."""

import contextlib
import ctypes
import os
import signal
import socket
import struct
import sys

_PR_SET_PDEATHSIG = 1


# What `python -c` runs: reads its start-up data from stdin, and makes this package importable.
BOOT = (
    "import json, sys; boot = json.load(sys.stdin); sys.path[:] = boot['path']; space = {'__name__': '_importer'}; "
    "exec(compile(boot['installer'], '_importer.py', 'exec'), space); "
    "space['install'](boot['package'], boot['sources']); "
    "from spark_tensorflow_distributor.runtime.trainer import forkserver; forkserver.main(boot)"
)


def kill_group(pid: int) -> None:
    """Kill a trainer and what it has started, if they still run."""
    # TensorFlow swallows SIGTERM. The group may not exist yet (just forked) or any more.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however that ends (Linux only)."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def peer_uid(connection: socket.socket) -> int | None:
    """The user at the other end of a Unix socket; None where the system does not tell."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", data)[1]
    return uid


def start_time(pid: int) -> str:
    """When the process started, in the kernel's ticks; "" where that cannot be told or it has ended.

    A pid is given out again; a pid with its start time is not. A zombie counts as ended.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def is_alive(pid: int, started: str) -> bool:
    """Whether the very process still runs."""
    if started:
        return start_time(pid) == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
