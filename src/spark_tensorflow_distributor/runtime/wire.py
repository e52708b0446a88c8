"""Messages on sockets, between driver and agent and between agent and trainer.

A frame is a length in four bytes, most significant first, then a JSON object. JSON, because nothing read from a socket
is unpickled before its sender is known; and the two ends of the driver's channel prove the launch's secret to each
other before anything else.
"""

import hashlib
import hmac
import json
import secrets
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, BinaryIO, TypeVar, get_origin, get_type_hints

from ..errors import RendezvousError

HANDSHAKE_SECONDS = 5.0
CHUNK_BYTES = 1 << 20

_HEADER = struct.Struct(">I")
_MAX_FRAME = 64 << 20
# Linux takes 253 with one message.
_FILES_AT_ONCE = 200

Record = TypeVar("Record")


def from_json(kind: type[Record], data: Mapping[str, Any]) -> Record:
    """Rebuild a dataclass, its tuples and its nested dataclasses from what ``asdict`` and JSON made of it."""
    hints = get_type_hints(kind)
    return kind(**{name: _restored(hints[name], value) for name, value in data.items()})


def _restored(hint: Any, value: Any) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        return from_json(hint, value)
    return tuple(value) if get_origin(hint) is tuple else value


def frame(message: Mapping[str, Any]) -> bytes:
    """One message, ready to be written to a socket."""
    body = json.dumps(message).encode()
    return _HEADER.pack(len(body)) + body


class FrameReader:
    """Puts frames together from the pieces in which a socket delivers them."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Add what was read; yields every message that is complete by now.

        Raises:
            ValueError: the peer does not speak this protocol.
        """
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            (size,) = _HEADER.unpack_from(self._buffer)
            if size > _MAX_FRAME:
                raise ValueError(f"a frame of {size} bytes is not one of ours")
            end = _HEADER.size + size
            if len(self._buffer) < end:
                return
            message = _parsed(bytes(self._buffer[_HEADER.size : end]))
            del self._buffer[:end]
            yield message


def receive(sock: socket.socket) -> dict[str, Any]:
    """Read exactly one frame from a blocking socket.

    Raises:
        EOFError: the peer closed the connection.
        ValueError: the peer does not speak this protocol.
    """
    (size,) = _HEADER.unpack(_receive_exactly(sock, _HEADER.size))
    if size > _MAX_FRAME:
        raise ValueError(f"a frame of {size} bytes is not one of ours")
    return _parsed(_receive_exactly(sock, size))


def _parsed(body: bytes) -> dict[str, Any]:
    message = json.loads(body)
    if not isinstance(message, dict):
        raise ValueError(f"a {type(message).__name__} is not one of our messages")
    return message


def receive_bytes(sock: socket.socket, size: int) -> Iterator[bytes]:
    """Read ``size`` bytes that follow a message, in pieces of up to 1 MiB.

    Raises:
        EOFError: the peer closed the connection before.
    """
    while size > 0:
        piece = _receive_exactly(sock, min(size, CHUNK_BYTES))
        size -= len(piece)
        yield piece


def _receive_exactly(sock: socket.socket, size: int, deadline: float | None = None) -> bytes:
    data = bytearray()
    while len(data) < size:
        if deadline is not None:  # of all pieces together: who sends a byte now and then is not waited for
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError("the connection was closed")
        data += piece
    return bytes(data)


def send_files(sock: socket.socket, message: Mapping[str, Any], files: Sequence[BinaryIO]) -> None:
    """Send a short message and open files over a local socket; ``receive_files`` is the other end."""
    sock.sendall(frame({**message, "files": len(files)}))
    for start in range(0, len(files), _FILES_AT_ONCE):
        socket.send_fds(sock, [b"F"], [file.fileno() for file in files[start : start + _FILES_AT_ONCE]])


def receive_files(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The next message, with the descriptors of its files.

    Raises:
        EOFError: the peer closed the connection.
    """
    message = receive(sock)
    descriptors: list[int] = []
    while len(descriptors) < message.get("files", 0):
        mark, received, _, _ = socket.recv_fds(sock, 1, _FILES_AT_ONCE)
        if not mark:
            raise EOFError("the connection was closed")
        descriptors += received
    return message, descriptors


def prove_to_driver(sock: socket.socket, secret: bytes) -> None:
    """The agent's half of the handshake: both show that they hold the secret, and neither sends it.

    A challenge and response over HMAC-SHA256 in both directions; the role is part of what is signed, so that an
    answer cannot be sent back to the one who asked.

    Raises:
        RendezvousError: the other side does not hold the secret.
    """
    challenge = _receive_exactly(sock, 32)
    own = secrets.token_bytes(32)
    sock.sendall(_sign(secret, b"agent", challenge) + own)
    if not hmac.compare_digest(_receive_exactly(sock, 32), _sign(secret, b"driver", own)):
        raise RendezvousError("The process at the driver's address does not hold this run's secret.")


def prove_to_agent(sock: socket.socket, secret: bytes) -> bool:
    """The driver's half of the handshake; False where the caller does not hold the secret.

    Raises:
        TimeoutError: the caller took longer than ``HANDSHAKE_SECONDS``.
    """
    challenge = secrets.token_bytes(32)
    sock.sendall(challenge)
    answer = _receive_exactly(sock, 64, time.monotonic() + HANDSHAKE_SECONDS)
    if not hmac.compare_digest(answer[:32], _sign(secret, b"agent", challenge)):
        return False
    sock.sendall(_sign(secret, b"driver", answer[32:]))
    return True


def _sign(secret: bytes, role: bytes, challenge: bytes) -> bytes:
    return hmac.new(secret, role + challenge, hashlib.sha256).digest()


def chunks(data: memoryview) -> Iterator[memoryview]:
    """Cut ``data`` into pieces of 1 MiB, the last one shorter; nothing for empty data."""
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]
