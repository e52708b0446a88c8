"""Connections between the driver and the agents: messages and bytes in sealed records."""

import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType

from ..transport.sealing import Buffer
from ..transport.stream import SealedStream
from .wire import Message, decode, encode

_RECEIVE_BYTES = 256 << 10
# Messages are sealed just before they are sent, about this many bytes at a time.
_SEALED_BYTES = 64 << 10
# Linux accepts at most 1024 pieces in one call.
_SEALED_PIECES = 256


class SealedSocket:
    """A blocking connection. Everything it sends and receives is sealed.

    Args:
        sock: The socket, with a timeout; this object closes it.
        stream: Seals and opens the records.
    """

    def __init__(self, sock: socket.socket, stream: SealedStream) -> None:
        self.socket, self.stream = sock, stream
        self._records: deque[bytes] = deque()

    def __enter__(self) -> "SealedSocket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, message: Mapping[str, object]) -> None:
        """Send a message."""
        self._send_record(encode(message))

    def receive(self) -> Message:
        """Read the next message.

        Raises:
            EOFError: The peer closed the connection.
            ValueError: The peer does not speak this protocol.
            NotAuthenticError: The data did not come unchanged from the peer.
        """
        return decode(self._receive_record())

    def send_bytes(self, pieces: Iterable[Buffer]) -> None:
        """Send the bytes that follow a message, in pieces of any size up to 64 MiB."""
        for piece in pieces:
            self._send_record(piece)

    def receive_bytes(self, size: int) -> Iterator[bytes]:
        """Read the ``size`` bytes that follow a message, in the pieces in which they were sent.

        Raises:
            EOFError, NotAuthenticError: As in :meth:`receive`.
            ValueError: The peer sent more than that, or an empty record.
        """
        while size > 0:
            piece = self._receive_record()
            size -= len(piece)
            if size < 0 or not piece:
                raise ValueError("the peer did not send the bytes that it announced")
            yield piece

    def add_received(self, records: Iterable[bytes]) -> None:
        """Take over records that have been read from the socket already."""
        self._records.extend(records)

    def _send_record(self, data: Buffer) -> None:
        for part in self.stream.seal(data):
            self.socket.sendall(part)

    def _receive_record(self) -> bytes:
        while not self._records:
            data = self.socket.recv(_RECEIVE_BYTES)
            if not data:
                raise EOFError("the connection was closed")
            self._records.extend(self.stream.feed(data))
        return self._records.popleft()


class Outbox:
    """Encoded messages that wait to be sent over a non-blocking connection.

    Args:
        sock: The socket.
        stream: Seals the records.

    Attributes:
        waiting_since: When the peer stopped accepting data, by ``time.monotonic()``; None if it accepts all data.
    """

    def __init__(self, sock: socket.socket, stream: SealedStream) -> None:
        self._socket, self._stream = sock, stream
        self._messages: deque[bytes] = deque()
        self._bytes = 0
        self._sealed: deque[memoryview] = deque()
        self.waiting_since: float | None = None

    def __bool__(self) -> bool:
        return bool(self._messages or self._sealed)

    @property
    def size(self) -> int:
        """Bytes that have not been sealed yet."""
        return self._bytes

    def put(self, message: bytes) -> None:
        """Queue an encoded message; :meth:`flush` sends it."""
        self._messages.append(message)
        self._bytes += len(message)

    def flush(self) -> bool:
        """Send as much as the socket accepts; return whether the outbox is now empty.

        Raises:
            OSError: The connection is lost.
        """
        while self:
            self._seal()
            try:
                sent = self._socket.sendmsg(list(self._sealed))
            except (BlockingIOError, InterruptedError):
                if self.waiting_since is None:
                    self.waiting_since = time.monotonic()
                return False
            self.waiting_since = None
            while self._sealed and sent >= len(self._sealed[0]):
                sent -= len(self._sealed.popleft())
            if sent:
                self._sealed[0] = self._sealed[0][sent:]
        return True

    def _seal(self) -> None:
        size = sum(map(len, self._sealed))
        while self._messages and size < _SEALED_BYTES and len(self._sealed) < _SEALED_PIECES:
            message = self._messages.popleft()
            self._bytes -= len(message)
            size += len(message)
            self._sealed.extend(map(memoryview, self._stream.seal(message)))
