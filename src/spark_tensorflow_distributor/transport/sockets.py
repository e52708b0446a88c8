"""Reads a known number of bytes from a socket."""

import socket
import time


def receive_exactly(sock: socket.socket, size: int, deadline: float | None = None) -> bytes:
    """Read exactly ``size`` bytes.

    Args:
        sock: A socket with a timeout, or a blocking one.
        size: Number of bytes.
        deadline: Time limit for all bytes together, by ``time.monotonic()``, so that a peer cannot stall by sending one
            byte at a time; this changes the socket's timeout. None keeps the socket's timeout.

    Raises:
        EOFError: If the peer closed the connection.
        TimeoutError: If the time is up.
    """
    data = bytearray()
    while len(data) < size:
        if deadline is not None:
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError("the connection was closed")
        data += piece
    return bytes(data)
