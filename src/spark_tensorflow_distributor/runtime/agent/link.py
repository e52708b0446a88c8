"""The agent's end of the driver's channel.

Losing the channel after the workers have met never hurts training. Messages that cannot be sent at once wait in a
bounded buffer; log lines that exceed it are dropped and counted. A lost connection is retried once a second. Messages
still waiting are lost with their connection, so the hello of the next one repeats what the driver must know.
"""

import contextlib
import select
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from ...errors import RendezvousError
from ..wire import HANDSHAKE_SECONDS, FrameReader, Message, frame, prove_to_driver, receive

_CONNECT_SECONDS = 3.0
# Time limit for each piece of a result.
_RESULT_SECONDS = 30.0
_HEARTBEAT_SECONDS = 2.0
# Size limit of log lines that wait for a slow driver.
_LOG_BUFFER_BYTES = 1 << 20


class DriverLink:
    """A connection to the driver that never blocks while sending.

    Args:
        addresses: The driver's addresses, in the order in which to try them.
        secret: Key of the launch.
        hello: The first message on every new connection; it names the rank.

    Attributes:
        dropped_lines: Number of log lines that were dropped.
        refused_since: When the driver began to refuse connections, by ``time.monotonic()``; None if it does not.
    """

    def __init__(self, addresses: Sequence[tuple[str, int]], secret: bytes, hello: Mapping[str, object]) -> None:
        self._addresses = addresses
        self._secret = secret
        self._hello = dict(hello)
        self._socket: socket.socket | None = None
        self._reader = FrameReader()
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._last_heartbeat = 0.0
        self.dropped_lines = 0
        self.refused_since: float | None = None

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def connect(self, seconds: float = _CONNECT_SECONDS) -> bool:
        """Try each address once, for at most ``seconds``; returns whether one accepted.

        Raises:
            RendezvousError: The process at that address does not hold the launch's secret.
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

    def update_hello(self, **changes: object) -> None:
        """Add to what the next connection says first."""
        self._hello.update(changes)

    def send(self, message: Mapping[str, object]) -> None:
        """Queue a message. It is kept until it has been sent or the connection is lost."""
        self._queue(frame(message))
        self.flush()

    def send_heartbeat(self, **facts: object) -> None:
        """Send a sign of life with ``facts``, at most every two seconds."""
        now = time.monotonic()
        if self._socket is not None and now - self._last_heartbeat >= _HEARTBEAT_SECONDS:
            self._last_heartbeat = now
            self.send({"type": "alive", **facts})

    def send_lines(self, stream: str, lines: Sequence[str]) -> None:
        """Queue log lines; drop and count them if the driver does not keep up."""
        if self._unsent_bytes > _LOG_BUFFER_BYTES or self._socket is None:
            self.dropped_lines += len(lines)
            return
        self._queue(frame({"type": "log", "stream": stream, "lines": list(lines), "dropped": self.dropped_lines}))
        self.flush()

    def _queue(self, data: bytes) -> None:
        self._unsent.append(data)
        self._unsent_bytes += len(data)

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent) and self._socket is not None

    def flush(self) -> None:
        """Send as much as the socket accepts without blocking."""
        while self._unsent and self._socket is not None:
            try:
                sent = self._socket.send(self._unsent[0])
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._declare_lost()
                return
            self._unsent_bytes -= sent
            if sent == len(self._unsent[0]):
                self._unsent.popleft()
            else:
                self._unsent[0] = self._unsent[0][sent:]

    def receive(self) -> Iterator[Message]:
        """Yield the messages that have arrived, without waiting for more."""
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

    def wait_for_message(self, deadline: float, *, silence: str) -> Message:
        """Wait for the driver's next message, and send heartbeats in the meantime.

        Args:
            deadline: When to give up, by ``time.monotonic()``.
            silence: The error's text in that case.

        Raises:
            RendezvousError: The connection was lost, or no message arrived in time.
        """
        while True:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise RendezvousError(silence)
            self.send_heartbeat()
            self.flush()
            ready, _, _ = select.select([self], [], [], min(remaining, 1.0))
            for message in self.receive() if ready else ():
                return message
            if not self.is_open:
                raise RendezvousError("The connection to the driver was lost while the workers were meeting.")

    def send_result(self, result: BinaryIO, size: int) -> bool:
        """Send the first ``size`` bytes of a file; returns whether the driver has received all of them.

        This is the only message that is followed by raw bytes. It blocks, since nothing else is left to do.
        """
        if self._socket is None:
            return False
        sock = self._socket
        try:
            sock.settimeout(_RESULT_SECONDS)
            while self._unsent:
                sock.sendall(self._unsent.popleft())
            self._unsent_bytes = 0
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
            # The lost connection may have sent half a frame: the next one must start clean.
            self._unsent.clear()
            self._unsent_bytes = 0

    def close(self, linger: float = 2.0) -> None:
        """Send what is still queued, for at most ``linger`` seconds, and close the connection."""
        end = time.monotonic() + linger
        while self.has_unsent and time.monotonic() < end:
            self.flush()
            if self._unsent:
                time.sleep(0.005)
        if self._socket is not None:
            with contextlib.suppress(OSError):  # the driver may have closed it first
                self._socket.shutdown(socket.SHUT_RDWR)
            self._declare_lost()


def open_connection(
    addresses: Sequence[tuple[str, int]], secret: bytes, hello: Mapping[str, object], seconds: float = _CONNECT_SECONDS
) -> tuple[socket.socket | None, bool]:
    """Connect to the driver, perform the handshake and send ``hello``.

    Returns:
        The socket, or None if no address accepted; and whether an address refused the connection.

    Raises:
        RendezvousError: The process at an address does not hold the launch's secret.
    """
    refused = False
    for address in addresses:
        try:
            sock = socket.create_connection(address, timeout=seconds)
        except ConnectionRefusedError:
            refused = True
            continue
        except OSError:  # no route, an unknown name, a firewall that drops packets: the next address may work
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
