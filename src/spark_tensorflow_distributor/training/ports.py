"""The port of a worker's TensorFlow server."""

import contextlib
import json
import os
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from typing import Any

_SO_ACCEPTCONN = 30  # on Linux; the socket module does not have it


class PortTakenError(Exception):
    """Another process bound this worker's port after it was chosen and before TensorFlow used it."""


def tf_config() -> dict[str, Any]:
    """Return TF_CONFIG, which the agent has set."""
    config: dict[str, Any] = json.loads(os.environ["TF_CONFIG"])
    return config


def own_port() -> int:
    """Return this worker's port in TF_CONFIG."""
    config = tf_config()
    return int(config["cluster"]["worker"][config["task"]["index"]].rpartition(":")[2])


def wait_for_leader(config: Mapping[str, Any], seconds: float = 60.0) -> None:
    """Wait until rank 0's server accepts connections; return at once on rank 0 itself.

    gRPC clients that connect before that server is up are refused, and retry only after a full second (gRPC's initial
    backoff). Polling every few milliseconds makes the start quick.

    Args:
        config: TF_CONFIG.
        seconds: How long to wait; after that, TensorFlow itself reports what is wrong.
    """
    if config["task"]["index"] == 0:
        return
    host, _, port = config["cluster"]["worker"][0].rpartition(":")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
            return
        except OSError:
            time.sleep(0.003)


def sockets_on(port: int, *, listening: bool) -> Iterator[socket.socket]:
    """Yield duplicates of this process's TCP sockets on a port (Linux).

    Args:
        port: The local port.
        listening: Yield the listening sockets; otherwise, the connections.
    """
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # it has been closed in the meantime, or is not a TCP socket
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            found = socket.socket(fileno=os.dup(int(name)))
            if _is_on(found, port, listening):
                yield found
            else:
                found.close()


def _is_on(found: socket.socket, port: int, listening: bool) -> bool:
    if found.family not in (socket.AF_INET, socket.AF_INET6) or found.type != socket.SOCK_STREAM:
        return False
    is_listening = found.getsockopt(socket.SOL_SOCKET, _SO_ACCEPTCONN) == 1
    return is_listening == listening and found.getsockname()[1] == port
