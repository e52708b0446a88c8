"""The agent's end of the driver's channel.

Losing the channel after the workers have met never affects training. Messages that cannot be sent at once wait; lines
of output wait behind them, in a bounded buffer, until the driver has room. Lines that exceed the buffer are dropped and
counted. A lost connection is retried once a second. Messages still waiting are lost with their connection, so the hello
of the next connection repeats what the driver must know.
"""

import contextlib
import random
import select
import socket
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from ...errors import RendezvousError
from ...transport.handshake import DRIVER, Handshake, NotAuthenticError
from ...transport.sealing import Protection
from ...transport.stream import SealedStream
from ..sealed_socket import Outbox, SealedSocket
from ..wire import Message, decode, encode, line_size, pieces

_CONNECT_SECONDS = 3.0
_HANDSHAKE_SECONDS = 5.0
# Number of tries: if too many peers connect at once, the driver closes the connections that have waited longest.
_HANDSHAKES = 4
# Time limit for each piece of a result.
_RESULT_SECONDS = 30.0
# Size limit, in characters, of lines that wait for a slow driver.
_LINE_BUFFER = 2 << 20
# A message carries at most this many characters of output, so that the driver can grant room in small steps.
_LINES_AT_ONCE = 8 << 10
# At the end, wait this long for a driver that has stopped showing lines, and at most this long for one that has not.
_IDLE_SECONDS = 2.0
_DRAIN_SECONDS = 15.0


class DriverLink:
    """A connection to the driver that never blocks while sending.

    Args:
        addresses: The driver's addresses, in the order in which to try them.
        secret: The launch's secret.
        hello: The first message on every new connection; it names the rank.
        protection: See ``RunPlan``.
        window: See ``specs.line_window``.
        heartbeat_seconds: See ``specs.heartbeat_seconds``.

    Attributes:
        dropped_lines: Number of lines of output that were dropped.
        refused_since: When the driver began to refuse connections, by ``time.monotonic()``; None while it does not.
    """

    def __init__(
        self,
        addresses: Sequence[tuple[str, int]],
        secret: bytes,
        hello: Mapping[str, object],
        *,
        protection: Protection = "integrity",
        window: int = 256 << 10,
        heartbeat_seconds: float = 2.0,
    ) -> None:
        self._addresses = addresses
        self._secret = secret
        self._hello = dict(hello)
        self._protection = protection
        self._window = window
        self._heartbeat_seconds = heartbeat_seconds
        self._connection: SealedSocket | None = None
        self._outbox: Outbox | None = None
        self._waiting: list[bytes] = []  # messages for the next connection
        self._received: deque[Message] = deque()  # arrived together with a message that was waited for
        self._lines: deque[tuple[int, bytes]] = deque()  # their size in characters, and the message
        self._line_characters = 0
        self._unshown = 0  # characters sent that the driver has not shown yet
        self._last_heartbeat = 0.0
        self.dropped_lines = 0
        self.refused_since: float | None = None

    @property
    def is_open(self) -> bool:
        return self._connection is not None

    def fileno(self) -> int:
        return -1 if self._connection is None else self._connection.socket.fileno()

    def connect(self, seconds: float = _CONNECT_SECONDS) -> bool:
        """Try each address once, for at most ``seconds``; return whether one accepted.

        Raises:
            RendezvousError: The process at that address does not hold the launch's secret.
        """
        connection, refused = open_connection(self._addresses, self._secret, self._hello, seconds, self._protection)
        if connection is not None:
            connection.socket.setblocking(False)
            self._connection, self._outbox = connection, Outbox(connection.socket, connection.stream)
            for message in self._waiting:
                self._outbox.put(message)
            self._waiting.clear()
            self._unshown = 0
            self._hello.pop("tampered", None)  # the driver knows it now
            self.refused_since = None
            return True
        if refused and self.refused_since is None:
            self.refused_since = time.monotonic()
        return False

    def update_hello(self, **changes: object) -> None:
        """Add fields to the hello of the next connection."""
        self._hello.update(changes)

    def send(self, message: Mapping[str, object]) -> None:
        """Queue a message. It is kept until it is sent, or until the connection for which it is queued is lost."""
        if self._outbox is None:
            self._waiting.append(encode(message))
        else:
            self._outbox.put(encode(message))
            self.flush()

    def send_heartbeat(self, **facts: object) -> None:
        """Send a heartbeat with ``facts``, unless the last one was sent a moment ago."""
        now = time.monotonic()
        if self._connection is not None and now - self._last_heartbeat >= self._heartbeat_seconds:
            self._last_heartbeat = now
            self.send({"type": "alive", **facts})

    def send_lines(self, stream: str, lines: Sequence[str]) -> None:
        """Queue lines of output; drop and count them if the driver does not keep up.

        Every message carries the number of lines dropped before its own, so that the driver can say where they are
        missing.
        """
        for some in _portions(lines):
            if self._line_characters > _LINE_BUFFER or self._connection is None:
                self.dropped_lines += len(some)
            else:
                self._queue_lines(stream, some)
        self.flush()

    def _queue_lines(self, stream: str, lines: Sequence[str]) -> None:
        message = {"type": "log", "stream": stream, "lines": list(lines), "dropped": self.dropped_lines}
        size = line_size(lines)
        self._lines.append((size, encode(message)))
        self._line_characters += size

    @property
    def has_unsent(self) -> bool:
        """Whether queued messages wait for the socket to accept data."""
        return bool(self._outbox)

    def flush(self) -> None:
        """Send as much as the socket accepts without blocking: messages first, then lines, as far as there is room."""
        try:
            while self._outbox is not None and self._outbox.flush():
                if not self._lines or self._unshown > self._window // 2:
                    return
                size, message = self._lines.popleft()
                self._line_characters -= size
                self._unshown += size
                self._outbox.put(message)
        except OSError:
            self._declare_lost()

    def receive(self) -> Iterator[Message]:
        """Yield the messages that have arrived, without waiting for more."""
        while self._received:
            yield self._received.popleft()
        if self._connection is None:
            return
        try:
            data = self._connection.socket.recv(1 << 16)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._declare_lost()
            return
        try:
            messages = [decode(record) for record in self._connection.stream.feed(data)]
        except (NotAuthenticError, ValueError):  # somebody between the hosts pretends to be the driver
            self._hello["tampered"] = True
            self._declare_lost()
            return
        for message in messages:
            if message["type"] == "shown":
                self._unshown -= int(message["size"])
                self.flush()
            else:
                yield message

    def wait_for_message(self, deadline: float, *, silence: str) -> Message:
        """Wait for the driver's next message, sending heartbeats in the meantime.

        Args:
            deadline: When to give up, by ``time.monotonic()``.
            silence: The error message in that case.

        Raises:
            RendezvousError: The connection was lost, or no message arrived in time.
        """
        while True:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise RendezvousError(silence)
            self.send_heartbeat()
            self.flush()
            messages = list(self.receive()) if select.select([self], [], [], min(remaining, 1.0))[0] else []
            if messages:
                self._received.extend(messages[1:])
                return messages[0]
            if not self.is_open:
                raise RendezvousError("The connection to the driver was lost while the workers were joining.")

    def send_result(self, result: BinaryIO, size: int) -> bool:
        """Send the first ``size`` bytes of a file; return whether the driver has received all of them.

        This uses a separate connection, and blocks, because nothing else is left to do.
        """
        if self._connection is None:
            return False
        hello = {"type": "result", "rank": self._hello.get("rank"), "size": size}
        try:
            connection, _ = open_connection(self._addresses, self._secret, hello, protection=self._protection)
            if connection is None:
                return False
            with connection:
                connection.socket.settimeout(_RESULT_SECONDS)
                connection.send_bytes(pieces(result, size))
                return bool(connection.receive()["type"] == "result_taken")
        except (OSError, EOFError, ValueError):
            return False

    def drain(self) -> None:
        """Send the waiting lines of output for as long as the driver shows them; drop and count the rest."""
        end = time.monotonic() + _DRAIN_SECONDS
        idle_since = time.monotonic()
        while self._connection is not None and (self._lines or self._outbox):
            now, before = time.monotonic(), (len(self._lines), self._unshown)
            if now > end or now - idle_since > _IDLE_SECONDS:
                break
            select.select([self], [self] if self.has_unsent else [], [], 0.1)
            self.flush()
            for _ in self.receive():  # any message now is too late
                pass
            if (len(self._lines), self._unshown) != before:
                idle_since = now
        if self._lines:
            for _, message in self._lines:
                self.dropped_lines += len(decode(message)["lines"])
            self._lines.clear()
            self._line_characters = 0
            self.send({"type": "log", "stream": "stdout", "lines": [], "dropped": self.dropped_lines})

    def _declare_lost(self) -> None:
        if self._connection is not None:
            self._connection.close()
            # Unsent data of the lost connection is sealed with its keys, useless for the next one.
            self._connection, self._outbox = None, None

    def close(self, linger: float = 2.0) -> None:
        """Send what is still queued, wait until the driver has read it, and close the connection.

        Args:
            linger: Time limit in seconds.
        """
        end = time.monotonic() + linger
        while self.has_unsent and (left := end - time.monotonic()) > 0:
            select.select([], [self], [], left)
            self.flush()
        if self._connection is not None:
            with contextlib.suppress(OSError):  # the driver may have closed it first
                self._connection.socket.shutdown(socket.SHUT_WR)
        while self._connection is not None and (left := end - time.monotonic()) > 0:
            select.select([self], [], [], left)
            for _ in self.receive():
                pass
        self._declare_lost()


def _portions(lines: Sequence[str]) -> Iterator[list[str]]:
    """Divide lines into portions of about ``_LINES_AT_ONCE`` characters."""
    portion: list[str] = []
    size = 0
    for line in lines:
        portion.append(line)
        size += len(line) + 1
        if size >= _LINES_AT_ONCE:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def open_connection(
    addresses: Sequence[tuple[str, int]],
    secret: bytes,
    hello: Mapping[str, object],
    seconds: float = _CONNECT_SECONDS,
    protection: Protection = "integrity",
) -> tuple[SealedSocket | None, bool]:
    """Connect to the driver, perform the handshake and send ``hello``.

    Returns:
        The connection, or None if no address accepted; and whether an address refused the connection.

    Raises:
        RendezvousError: The process at an address does not hold the launch's secret.
        EncryptionUnsupportedError: See :func:`make_sealers`.
    """
    refused = False
    for address in addresses:
        for number in range(_HANDSHAKES):
            try:
                sock = socket.create_connection(address, timeout=seconds)
            except ConnectionRefusedError:
                refused = True
                break
            except OSError:  # no route, an unknown name, a firewall that drops packets: the next address may work
                break
            try:
                return _introduce(sock, secret, hello, protection), refused
            except (OSError, EOFError):
                sock.close()
                time.sleep(random.random() * 0.2 * number)
            except BaseException:
                sock.close()
                raise
    return None, refused


def _introduce(sock: socket.socket, secret: bytes, hello: Mapping[str, object], protection: Protection) -> SealedSocket:
    deadline = time.monotonic() + _HANDSHAKE_SECONDS
    rank = int(str(hello.get("rank", 0)))
    try:
        keys = Handshake(secret, 0, rank).connect(sock, DRIVER, deadline)
    except NotAuthenticError:
        raise RendezvousError("The process at the driver's address does not hold this run's secret.") from None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.settimeout(_HANDSHAKE_SECONDS)
    connection = SealedSocket(sock, SealedStream(keys, protection))
    connection.send(hello)
    return connection
