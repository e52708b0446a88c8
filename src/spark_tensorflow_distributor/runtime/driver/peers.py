"""One agent's connection, as the channel's event loop sees it."""

import selectors
import socket
from collections.abc import Callable, Iterator

from ...transport.stream import SealedStream
from ..sealed_socket import Outbox, SealedSocket
from ..wire import Message, decode

_RECEIVE_BYTES = 64 << 10


class Peer:
    """A connection whose peer has proved that it holds the secret.

    Args:
        sock: The socket, non-blocking; this object closes it.
        rank: The peer's rank.
        stream: Seals and opens the records.
        selector: The loop's selector.

    Attributes:
        host: The peer's host, as its hello names it.
        outbox: Messages that wait to be sent.
        is_closed: Whether the loop must no longer use the connection.
    """

    def __init__(self, sock: socket.socket, rank: int, stream: SealedStream, selector: selectors.BaseSelector) -> None:
        self.rank, self.host = rank, "?"
        self.outbox = Outbox(sock, stream)
        self.is_closed = False
        self._socket, self._stream, self._selector = sock, stream, selector
        self._callback: Callable[[int], None] = lambda _: None
        self._waits_to_send = False
        self._records: Iterator[bytes] = iter(())

    def listen(self, callback: Callable[[int], None]) -> None:
        """Register with the loop; ``callback`` gets the mask of each event."""
        self._callback = callback
        self._selector.register(self._socket, selectors.EVENT_READ, callback)

    def receive(self) -> Iterator[Message]:
        """Yield the messages that have arrived.

        Raises:
            EOFError: The peer closed the connection.
            OSError: The connection is lost, or data is not authentic (``NotAuthenticError``).
            ValueError: The peer does not speak this protocol.
        """
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        if not data:
            raise EOFError("the connection was closed")
        self._records = self._stream.feed(data)
        for record in self._records:
            yield decode(record)

    def send(self, message: bytes) -> None:
        """Queue an encoded message, and send as much as the socket accepts.

        Raises:
            OSError: The connection is lost.
        """
        self.outbox.put(message)
        if not self._waits_to_send:
            self.flush()

    def flush(self) -> None:
        """Send as much as the socket accepts; the loop sends the rest later."""
        waits = not self.outbox.flush()
        if waits != self._waits_to_send:
            self._waits_to_send = waits
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if waits else 0)
            self._selector.modify(self._socket, events, self._callback)

    def hand_over(self) -> SealedSocket:
        """Leave the loop; return the connection for blocking use, with the data that it has already received."""
        self.is_closed = True
        self._selector.unregister(self._socket)
        connection = SealedSocket(self._socket, self._stream)
        connection.add_received(self._records)
        return connection

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._selector.unregister(self._socket)
            self._socket.close()
