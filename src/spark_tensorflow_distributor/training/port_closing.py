"""Closes TensorFlow's port once all workers are connected with each other (Linux).

TensorFlow's server listens for as long as its process lives, although nobody connects once the group is complete. After
that, the listening socket is shut down: connections that exist stay, and new ones are refused.
"""

import contextlib
import socket
from collections.abc import Callable

import tensorflow as tf

from ..formatting import one_line
from .collectives import Collectives
from .ports import own_port, sockets_on
from .private_names import EAGER_CONTEXT

# For one connection to one peer.
_CONNECT_SECONDS = 30


def close_port(collectives: Collectives, warn: Callable[[str], None]) -> None:
    """Connect to all other workers, then refuse further connections to this worker's port.

    Every worker of the group must call it. If a worker cannot connect to another one, the ports of all stay open.

    Args:
        collectives: The group's collectives, on TensorFlow's runtime.
        warn: Called with a message if this worker's port stays open.
    """
    check = getattr(EAGER_CONTEXT.load().context(), "check_collective_ops_peer_health", None)
    if check is None:  # alike on all workers, which have the same release; a warning names what it lacks
        return
    problem = _connect(check, collectives.rank, collectives.world_size)
    # Every worker enters this collective after it has connected to the others: when it ends, all have.
    if float(collectives.all_reduce(tf.constant(0.0 if problem else 1.0))) < collectives.world_size:
        if problem:
            warn(f"TensorFlow's port {own_port()} and those of the other workers stay open ({problem}).")
        return
    for listener in sockets_on(own_port(), listening=True):
        with listener, contextlib.suppress(OSError):  # shut down before
            listener.shutdown(socket.SHUT_RDWR)


def _connect(check: Callable[..., None], rank: int, world_size: int) -> str:
    """Make a connection to every other worker; return what went wrong."""
    try:
        for peer in set(range(world_size)) - {rank}:
            check(f"/job:worker/replica:0/task:{peer}", timeout_in_ms=_CONNECT_SECONDS * 1000)
    except Exception as error:  # whatever it is, the group can train with open ports
        return one_line(error)
    return ""
