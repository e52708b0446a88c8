"""Encodes the messages between driver and agent, and between agent and trainer, as JSON objects.

They are JSON because nothing may be unpickled from a socket before its sender is authenticated. Between hosts, messages
travel in sealed records (see ``sealed_socket``). On the sockets between the processes of one host, a frame is a length
in four bytes, most significant first, followed by the message.
"""

import json
import socket
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, BinaryIO, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

from ..transport.sockets import receive_exactly

CHUNK_BYTES = 1 << 20
# Larger messages between hosts are compressed: messages to all ranks also list all ranks, and compress well.
_COMPRESSED_FROM = 16 << 10
_COMPRESSED = b"z"  # no JSON object begins with this byte

_HEADER = struct.Struct(">I")
_MAX_FRAME = 64 << 20
# Linux accepts at most 253 file descriptors with one message.
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
    if get_origin(hint) is tuple:
        element = get_args(hint)[0]  # the tuples of these records have any number of elements of one type
        return tuple(_rebuilt(element, each) for each in value)
    if type(None) in get_args(hint) and value is not None:
        return _rebuilt(get_args(hint)[0], value)
    return value


def encode(message: Mapping[str, object]) -> bytes:
    """Encode a message for another host."""
    body = json.dumps(message, separators=(",", ":")).encode()
    return _COMPRESSED + zlib.compress(body, 1) if len(body) > _COMPRESSED_FROM else body


def decode(data: bytes) -> Message:
    """Decode a message from another host.

    Raises:
        ValueError: It is not a message.
    """
    if data[:1] == _COMPRESSED:
        decompressor = zlib.decompressobj()
        try:
            data = decompressor.decompress(data[1:], _MAX_FRAME)
        except zlib.error as error:
            raise ValueError(f"a damaged message: {error}") from error
        if decompressor.unconsumed_tail:
            raise ValueError(f"a message of more than {_MAX_FRAME} bytes is not one of ours")
    return _parsed(data)


def frame(message: Mapping[str, object]) -> bytes:
    """Encode a message for a socket on this host."""
    body = json.dumps(message).encode()
    return _HEADER.pack(len(body)) + body


class FrameReader:
    """Assembles frames from the pieces in which a socket delivers them."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Add received bytes; yield every message that is now complete.

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
    return _parsed(receive_exactly(sock, _frame_size(receive_exactly(sock, _HEADER.size))))


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


def pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Read the first ``size`` bytes of a file in pieces of 1 MiB, the last one shorter; none if ``size`` is 0."""
    file.seek(0)
    while size > 0 and (piece := file.read(min(size, CHUNK_BYTES))):
        size -= len(piece)
        yield piece


def line_size(lines: Sequence[str]) -> int:
    """Return the size of lines of output in characters, as both the driver and the agents count it."""
    return sum(map(len, lines)) + len(lines)


def to_columns(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rearrange records that have the same keys, so that each key is named only once."""
    return {key: [each[key] for each in records] for key in records[0]}


def from_columns(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return the records from which :func:`to_columns` made the columns."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
