"""Messages on sockets, between driver and agent and between agent and trainer.

A frame is a length in four bytes, most significant first, followed by a JSON object. It is JSON because nothing may be
unpickled from a socket before its sender is known: the two ends of the driver's channel first prove to each other that
they hold the launch's secret.
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
from typing import Any, BinaryIO, TypeAlias, TypeVar, get_origin, get_type_hints

from ..errors import RendezvousError

HANDSHAKE_SECONDS = 5.0
CHUNK_BYTES = 1 << 20

_HEADER = struct.Struct(">I")
_MAX_FRAME = 64 << 20
# Linux accepts at most 253 with one message.
_FILES_AT_ONCE = 200

Message: TypeAlias = dict[str, Any]
Record = TypeVar("Record")


def from_json(kind: type[Record], data: Mapping[str, Any]) -> Record:
    """Rebuild a dataclass from the JSON of its ``asdict``, including tuples and nested dataclasses."""
    hints = get_type_hints(kind)
    return kind(**{name: _rebuilt(hints[name], value) for name, value in data.items()})


def _rebuilt(hint: Any, value: Any) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        return from_json(hint, value)
    return tuple(value) if get_origin(hint) is tuple else value


def frame(message: Mapping[str, object]) -> bytes:
    """Encode a message for a socket."""
    body = json.dumps(message).encode()
    return _HEADER.pack(len(body)) + body


class FrameReader:
    """Assembles frames from the pieces in which a socket delivers them."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Add received bytes; yields every message that is now complete.

        Raises:
            ValueError: The peer does not speak this protocol.
        """
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            end = _HEADER.size + _frame_size(self._buffer)
            if len(self._buffer) < end:
                return
            message = _parsed(bytes(self._buffer[_HEADER.size : end]))
            del self._buffer[:end]
            yield message


def receive(sock: socket.socket) -> Message:
    """Read exactly one message from a blocking socket.

    Raises:
        EOFError: The peer closed the connection.
        ValueError: The peer does not speak this protocol.
    """
    return _parsed(_receive_exactly(sock, _frame_size(_receive_exactly(sock, _HEADER.size))))


def _frame_size(data: bytes | bytearray) -> int:
    size: int = _HEADER.unpack_from(data)[0]
    if size > _MAX_FRAME:
        raise ValueError(f"a frame of {size} bytes is not one of ours")
    return size


def _parsed(body: bytes) -> Message:
    message = json.loads(body)
    if not isinstance(message, dict):
        raise ValueError(f"a {type(message).__name__} is not one of our messages")
    return message


def receive_bytes(sock: socket.socket, size: int) -> Iterator[bytes]:
    """Read the ``size`` bytes that follow a message, in pieces of up to 1 MiB.

    Raises:
        EOFError: The peer closed the connection too early.
    """
    while size > 0:
        piece = _receive_exactly(sock, min(size, CHUNK_BYTES))
        size -= len(piece)
        yield piece


def _receive_exactly(sock: socket.socket, size: int, deadline: float | None = None) -> bytes:
    data = bytearray()
    while len(data) < size:
        if deadline is not None:  # for all pieces together, so that a peer cannot stall by sending a byte at a time
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError("the connection was closed")
        data += piece
    return bytes(data)


def send_files(sock: socket.socket, message: Mapping[str, object], files: Sequence[BinaryIO]) -> None:
    """Send a short message with open files over a local socket, for :func:`receive_files` at the other end."""
    sock.sendall(frame({**message, "files": len(files)}))
    for start in range(0, len(files), _FILES_AT_ONCE):
        socket.send_fds(sock, [b"F"], [file.fileno() for file in files[start : start + _FILES_AT_ONCE]])


def receive_files(sock: socket.socket) -> tuple[Message, list[int]]:
    """Read the next message with the descriptors of its files.

    Raises:
        EOFError: The peer closed the connection.
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
    """Perform the agent's half of the handshake.

    Each side proves that it holds the secret without sending it, by a challenge and response over HMAC-SHA256 in both
    directions. The role is part of the signed data, so that a response cannot be reflected to the challenger.

    Raises:
        RendezvousError: The other side does not hold the secret.
    """
    challenge = _receive_exactly(sock, 32)
    counter_challenge = secrets.token_bytes(32)
    sock.sendall(_sign(secret, b"agent", challenge) + counter_challenge)
    if not hmac.compare_digest(_receive_exactly(sock, 32), _sign(secret, b"driver", counter_challenge)):
        raise RendezvousError("The process at the driver's address does not hold this run's secret.")


def prove_to_agent(sock: socket.socket, secret: bytes) -> bool:
    """Perform the driver's half of the handshake; returns whether the peer holds the secret.

    Raises:
        TimeoutError: The peer took longer than ``HANDSHAKE_SECONDS``.
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
    """Split ``data`` into pieces of 1 MiB, the last one shorter; empty data has none."""
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]
