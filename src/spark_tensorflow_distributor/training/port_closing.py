"""Closes TensorFlow's port once all workers are connected to each other (Linux).

TensorFlow's server listens as long as its process lives, although no worker connects any more once the group is
complete. The listening socket is therefore shut down: existing connections stay open, and new ones are refused.
"""

import contextlib
import socket
from collections.abc import Callable

import tensorflow as tf

from ..formatting import one_line
from .collectives import Collectives
from .ports import own_port, sockets_on
from .private_names import EAGER_CONTEXT

# Timeout for one connection to one peer.
_CONNECT_SECONDS = 30


def close_port(collectives: Collectives, warn: Callable[[str], None]) -> None:
    """Connect to all other workers, then refuse further connections to this worker's port.

    Every worker of the group must call this. If any worker cannot connect to another, all ports stay open.

    Args:
        collectives: The group's collectives, on TensorFlow's runtime.
        warn: Called with a message if this worker's port stays open.
    """
    check = getattr(EAGER_CONTEXT.load().context(), "check_collective_ops_peer_health", None)
    if check is None:  # on all workers alike, as they have the same release; another warning names what it lacks
        return
    problem = _connect(check, collectives.rank, collectives.world_size)
    # Every worker enters this collective after it has connected to the others; once it ends, all are connected.
    if float(collectives.all_reduce(tf.constant(0.0 if problem else 1.0))) < collectives.world_size:
        if problem:
            warn(f"TensorFlow's port {own_port()} and the other workers' ports stay open ({problem}).")
        return
    for listener in sockets_on(own_port(), listening=True):
        with listener, contextlib.suppress(OSError):  # already shut down
            listener.shutdown(socket.SHUT_RDWR)


def _connect(check: Callable[..., None], rank: int, world_size: int) -> str:
    """Connect to every other worker; return the error in one line, "" if there is none."""
    try:
        for peer in set(range(world_size)) - {rank}:
            check(f"/job:worker/replica:0/task:{peer}", timeout_in_ms=_CONNECT_SECONDS * 1000)
    except Exception as error:  # whatever went wrong, the group can train with open ports
        return one_line(error)
    return ""
