"""The agent's end of the driver's channel.

Losing it after the workers have met never hurts training: what cannot be sent at once waits in a bounded buffer, log
lines beyond it are dropped and counted, and a lost connection is tried again once a second. What was waiting is lost
with a connection; what the driver must know of a worker, its next connection says first.
"""

import contextlib
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from ...errors import RendezvousError
from ..wire import HANDSHAKE_SECONDS, FrameReader, frame, prove_to_driver, receive

_CONNECT_SECONDS = 3.0
# For each piece of a result, not for the whole of it.
_RESULT_SECONDS = 30.0
_ALIVE_SECONDS = 2.0
# Log lines that wait for a slow driver, in bytes.
_LOG_BUFFER_BYTES = 1 << 20


class DriverLink:
    """A connection to the driver that sends without ever blocking.

    Args:
        addresses: where the driver listens, to be tried in this order.
        secret: the run's key.
        hello: the first message on every new connection; it names the rank.
    """

    def __init__(self, addresses: Sequence[tuple[str, int]], secret: bytes, hello: Mapping[str, Any]) -> None:
        self._addresses = addresses
        self._secret = secret
        self._hello = dict(hello)
        self._socket: socket.socket | None = None
        self._reader = FrameReader()
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._told_alive = 0.0
        self.dropped_lines = 0
        self.refused_since: float | None = None

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def connect(self, seconds: float = _CONNECT_SECONDS) -> bool:
        """Try each address once, for at most ``seconds``; False where none answers.

        Raises:
            RendezvousError: who answers does not hold the run's secret.
        """
        sock, refused = open_connection(self._addresses, self._secret, self._hello, seconds)
        if sock is not None:
            sock.setblocking(False)
            self._socket, self._reader = sock, FrameReader()
            self.refused_since = None
            return True
        if refused and self.refused_since is None:
            self.refused_since = time.monotonic()
        return False

    def update_hello(self, **changes: Any) -> None:
        """What a later connection says of this worker first."""
        self._hello.update(changes)

    def send(self, message: Mapping[str, Any]) -> None:
        """Queue a message; it is kept until it could be sent, or the connection is lost."""
        self._queue(frame(message))
        self.flush()

    def tell_alive(self, **facts: Any) -> None:
        """A sign of life, every two seconds at most."""
        now = time.monotonic()
        if self._socket is not None and now - self._told_alive >= _ALIVE_SECONDS:
            self._told_alive = now
            self.send({"type": "alive", **facts})

    def send_lines(self, stream: str, lines: Sequence[str]) -> None:
        """Queue log lines; dropped and counted where the driver does not keep up."""
        if self._waiting_bytes > _LOG_BUFFER_BYTES or self._socket is None:
            self.dropped_lines += len(lines)
            return
        self._queue(frame({"type": "log", "stream": stream, "lines": list(lines), "dropped": self.dropped_lines}))
        self.flush()

    def _queue(self, data: bytes) -> None:
        self._waiting.append(data)
        self._waiting_bytes += len(data)

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting) and self._socket is not None

    def flush(self) -> None:
        """Send what the socket takes now."""
        while self._waiting and self._socket is not None:
            try:
                sent = self._socket.send(self._waiting[0])
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._declare_lost()
                return
            self._waiting_bytes -= sent
            if sent == len(self._waiting[0]):
                self._waiting.popleft()
            else:
                self._waiting[0] = self._waiting[0][sent:]

    def receive(self) -> Iterator[dict[str, Any]]:
        """The messages that have arrived; ends at once where there are none, or the connection is lost."""
        if self._socket is None:
            return
        try:
            data = self._socket.recv(1 << 16)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._declare_lost()
            return
        yield from self._reader.feed(data)

    def send_result(self, result: BinaryIO, size: int) -> bool:
        """Send the first ``size`` bytes of a file; whether the driver has taken all of them.

        The one message that is not JSON: its bytes follow it. Blocks, since nothing else is left to do.
        """
        if self._socket is None:
            return False
        sock = self._socket
        try:
            sock.settimeout(_RESULT_SECONDS)
            while self._waiting:
                sock.sendall(self._waiting.popleft())
            self._waiting_bytes = 0
            sock.sendall(frame({"type": "result", "size": size}))
            sock.sendfile(result, 0, size)
            while receive(sock)["type"] != "result_taken":
                pass
            sock.setblocking(False)
            return True
        except (OSError, EOFError):
            self._declare_lost()
            return False

    def _declare_lost(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            # Half a frame may have been sent: a new connection starts clean.
            self._waiting.clear()
            self._waiting_bytes = 0

    def close(self, linger: float = 2.0) -> None:
        """Send what waits, for at most ``linger`` seconds, and close."""
        if self._socket is None:
            return
        end = time.monotonic() + linger
        while self._waiting and self._socket is not None and time.monotonic() < end:
            self.flush()
            if self._waiting:
                time.sleep(0.005)
        if self._socket is not None:
            with contextlib.suppress(OSError):  # the driver may have gone first
                self._socket.shutdown(socket.SHUT_RDWR)
            self._declare_lost()


def open_connection(
    addresses: Sequence[tuple[str, int]], secret: bytes, hello: Mapping[str, Any], seconds: float = _CONNECT_SECONDS
) -> tuple[socket.socket | None, bool]:
    """A connection to the driver on which both ends have proved themselves, and ``hello`` was said.

    Returns:
        The socket, or None where no address answers; and whether one refused.

    Raises:
        RendezvousError: who answers does not hold the run's secret.
    """
    refused = False
    for address in addresses:
        try:
            sock = socket.create_connection(address, timeout=seconds)
        except ConnectionRefusedError:
            refused = True
            continue
        except OSError:  # no route, no name, a firewall that swallows: the next address may do
            continue
        try:
            sock.settimeout(HANDSHAKE_SECONDS)
            prove_to_driver(sock, secret)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.sendall(frame(hello))
            return sock, refused
        except (OSError, EOFError):
            sock.close()
        except RendezvousError:
            sock.close()
            raise
    return None, refused


def expect(link: DriverLink, deadline: float, *, silence: str) -> dict[str, Any]:
    """Wait for the next message of the driver.

    Raises:
        RendezvousError: the connection was lost, or nothing came until ``deadline`` (``time.monotonic()``).
    """
    import select

    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise RendezvousError(silence)
        link.tell_alive()
        link.flush()
        ready, _, _ = select.select([link], [], [], min(remaining, 1.0))
        for message in link.receive() if ready else ():
            return message
        if not link.is_open:
            raise RendezvousError("The connection to the driver was lost while the workers were meeting.")
