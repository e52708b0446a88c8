"""One member's connection to another, and the errors that it can raise."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

from ..errors import CollectiveError
from ..transport.handshake import NotAuthenticError
from ..transport.sealing import Buffer, Sealer
from ..transport.sockets import receive_exactly
from .frames import (
    BULK_BYTES,
    HEADER_BYTES,
    Header,
    NotAFrameError,
    Operation,
    data_header,
    farewell,
    parse_farewell,
    parse_header,
)

# The kernel gives up on a peer that has been silent for this long. The driver notices lost workers sooner; a link that
# is down for a few seconds must not end a run.
_SILENT_SECONDS = 30
# Time limit for sending or receiving a farewell.
_FAREWELL_SECONDS = 5.0


class PeerLostError(CollectiveError):
    """A peer failed or disappeared, so an operation cannot be completed.

    Args:
        message: What is known about the failure.
        reason: The farewell to send to the other members; see :class:`FarewellError`.
    """

    def __init__(self, message: str, reason: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.reason = dict(reason)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.reason)


class DifferentOperationError(Exception):
    """A peer is in a different operation from this member.

    Args:
        connection: The connection to the peer.
        theirs: The peer's operation.
        unread: Number of bytes of data that follow the header that was read.
    """

    def __init__(self, connection: Connection, theirs: Operation, unread: int) -> None:
        super().__init__(f"rank {connection.rank} is in {theirs}")
        self.connection, self.theirs, self.unread = connection, theirs, unread


class FarewellError(Exception):
    """A peer has said farewell.

    Args:
        connection: The connection to the peer.
        reason: The contents of the farewell: ``kind`` is ``"failed"``, ``"lost"``, ``"returned"`` or ``"out of step"``.
    """

    def __init__(self, connection: Connection, reason: Mapping[str, Any]) -> None:
        super().__init__(f"rank {connection.rank}: {reason}")
        self.connection, self.reason = connection, dict(reason)


class Connection:
    """A connected and authenticated socket to a peer.

    Each frame travels as two sealed records, its header and its data. Nothing in a record is used before it has been
    authenticated, except that bulk data is not authenticated if the protection is ``"light"``.

    Args:
        sock: The socket; this object closes it.
        rank: The peer's rank.
        sealers: Protect outgoing and incoming data.
    """

    def __init__(self, sock: socket.socket, rank: int, sealers: tuple[Sealer, Sealer]) -> None:
        self.rank, self.socket = rank, sock
        self._outgoing, self._incoming = sealers
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            _configure_tcp(sock)
        # The unsent rest of the current frame; a farewell may follow only a complete frame.
        self.unsent: list[memoryview] = []
        self._header = bytearray(HEADER_BYTES + self._incoming.tag_bytes())
        self._header_view = memoryview(self._header)
        self._header_bytes = 0
        self._peeked: Header | None = None  # authenticated, but not yet read from the socket
        self._is_inside_frame = False  # a header has been read, but not all of its data
        self._farewell: dict[str, Any] | None = None  # received, but not raised yet

    def fileno(self) -> int:
        return self.socket.fileno()

    def lost(self, error: object = "it closed the connection") -> PeerLostError:
        """Return the error to raise because this peer is gone."""
        return PeerLostError(
            f"The connection to rank {self.rank} was lost: {error}.",
            {"kind": "lost", "rank": self.rank, "text": str(error)},
        )

    def queue(self, operation: Operation, data: memoryview | None = None) -> None:
        """Queue a frame of the operation, with data if given; ``unsent`` must be empty."""
        size = 0 if data is None else len(data)
        self._queue(self._outgoing.seal(data_header(operation, size)))
        if data is not None:
            self._queue(self._outgoing.seal(data, bulk=size > BULK_BYTES))

    def _queue(self, pieces: list[Buffer]) -> None:
        self.unsent += map(memoryview, pieces)

    def send(self) -> bool:
        """Send as much of ``unsent`` as the socket accepts; return whether all of it was sent.

        Raises:
            PeerLostError: If the peer is gone.
            FarewellError: If the peer has said why it is leaving.
        """
        if self.unsent:
            self._raise_farewell()
        while self.unsent:
            try:
                count = self.socket.sendmsg(self.unsent)
            except BlockingIOError:
                return False
            except OSError as error:
                self.check()  # the peer's farewell may be waiting
                raise self.lost(error) from error
            while self.unsent and count >= len(self.unsent[0]):
                count -= len(self.unsent.pop(0))
            if count:
                self.unsent[0] = self.unsent[0][count:]
        return True

    def receive_header(self, operation: Operation) -> int | None:
        """Read the next header; return the length of its data, or None if it has not arrived yet.

        Raises:
            PeerLostError: If the peer is gone, or does not speak this protocol.
            FarewellError: If the peer has said why it is leaving.
            DifferentOperationError: If the peer is in another operation.
        """
        self._raise_farewell()
        while self._header_bytes < len(self._header):
            count = self.receive_into(self._header_view[self._header_bytes :])
            if not count:
                return None
            self._header_bytes += count
        self._header_bytes = 0
        try:
            header = self._open_header(self._header_view)
        except (NotAFrameError, NotAuthenticError) as error:
            raise self.lost(_reason(error)) from error
        if header.operation is None:
            raise FarewellError(self, self._read_farewell(header.length))
        if header.operation != operation:
            raise DifferentOperationError(self, header.operation, header.length)
        self._is_inside_frame = header.length > 0
        return header.length

    def tag_bytes(self, size: int) -> int:
        """Return the size of the tag that follows the data of a frame, and that :meth:`open` needs."""
        return self._incoming.tag_bytes(bulk=size > BULK_BYTES) if size else 0

    def open(self, data: memoryview, tag: memoryview) -> None:
        """Authenticate the data of a frame, and decrypt it in place.

        Raises:
            PeerLostError: If the data is not what the peer sent.
        """
        self._is_inside_frame = False
        if data:
            try:
                self._incoming.open_in_place(data, tag, bulk=len(data) > BULK_BYTES)
            except NotAuthenticError as error:
                raise self.lost(_reason(error)) from error

    def _open_header(self, sealed: memoryview) -> Header:
        """Parse a received header, unless :meth:`check` has already done so.

        Raises:
            NotAFrameError, NotAuthenticError: If the peer has not sent this header.
        """
        header, self._peeked = self._peeked, None
        if header is None:
            header = parse_header(self._incoming.open(sealed[:HEADER_BYTES], sealed[HEADER_BYTES:]))
        return header

    def receive_into(self, view: memoryview) -> int:
        """Receive some bytes; return their number, 0 if none have arrived yet.

        Raises:
            PeerLostError: If the peer is gone.
        """
        try:
            count = self.socket.recv_into(view)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self.lost(error) from error
        if not count and len(view):
            raise self.lost()
        return count

    def check(self, *, is_needed: bool = True) -> bool:
        """Look for a farewell without reading anything else; return whether to stop looking.

        Args:
            is_needed: Whether the current operation needs this peer. If not, only a farewell that says that the members
                are out of step is raised now; any other one is raised by the next operation that needs the peer.

        Raises:
            PeerLostError: If the peer is gone.
            FarewellError: If the peer has said why it is leaving.
        """
        try:
            data = self.socket.recv(len(self._header), socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError as error:
            raise self.lost(error) from error
        if not data and is_needed:
            raise self.lost()
        if len(data) < len(self._header) or self._header_bytes or self._is_inside_frame:
            return True
        try:
            self._peeked = self._peeked or self._open_header(memoryview(data))
        except (NotAFrameError, NotAuthenticError) as error:
            raise self.lost(_reason(error)) from error
        if self._peeked.operation is None:
            length, self._peeked = self._peeked.length, None
            self.socket.recv(len(self._header))
            self._farewell = self._read_farewell(length)
            if is_needed or self._farewell.get("kind") == "out of step":
                self._raise_farewell()
        return True

    def _raise_farewell(self) -> None:
        if self._farewell is not None:
            raise FarewellError(self, self._farewell)

    def wait_for_farewell(self, unread: int) -> dict[str, Any]:
        """Skip everything that arrives before the farewell; return the farewell, empty if none arrives in time.

        Args:
            unread: Number of bytes of data that belong to the header that was read last.
        """
        end = time.monotonic() + _FAREWELL_SECONDS
        try:
            while time.monotonic() < end:
                self._read_record(unread, end, bulk=unread > BULK_BYTES)
                header = self._open_header(memoryview(self._read_exactly(len(self._header), end)))
                if header.operation is None:
                    return parse_farewell(self._read_record(header.length, end))
                unread = header.length
        except (OSError, EOFError, NotAFrameError):  # NotAuthenticError is an OSError
            pass
        return {}

    def say_farewell(self, reason: Mapping[str, Any], deadline: float | None = None) -> None:
        """Tell the peer that no operation will follow, and why.

        Args:
            reason: See :class:`FarewellError`.
            deadline: When to give up, by ``time.monotonic()``; by default, after 5 s.
        """
        for part in farewell(reason):
            self._queue(self._outgoing.seal(part))
        frame = b"".join(self.unsent)
        self.unsent = []
        left = _FAREWELL_SECONDS if deadline is None else max(deadline - time.monotonic(), 0.001)
        with contextlib.suppress(OSError):
            self.socket.settimeout(left)
            self.socket.sendall(frame)
        # Not closed yet: with unread data, closing would send a reset, which discards the farewell.
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            self.socket.setblocking(False)

    def break_off(self) -> None:
        """End the connection at once, even while another thread is using it."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.socket.close()

    def _read_farewell(self, length: int) -> dict[str, Any]:
        try:
            return parse_farewell(self._read_record(length, time.monotonic() + _FAREWELL_SECONDS))
        except EOFError as error:
            raise self.lost() from error
        except (OSError, NotAFrameError) as error:  # NotAuthenticError is an OSError
            raise self.lost(_reason(error)) from error

    def _read_record(self, length: int, end: float, *, bulk: bool = False) -> bytes:
        """Read the data of a frame; a farewell's data is never bulk data."""
        if not length:
            return b""
        sealed = memoryview(self._read_exactly(length + self._incoming.tag_bytes(bulk=bulk), end))
        return bytes(self._incoming.open(sealed[:length], sealed[length:], bulk=bulk))

    def _read_exactly(self, length: int, end: float) -> bytes:
        data = receive_exactly(self.socket, length, end)
        self.socket.setblocking(False)
        return data


def _reason(error: Exception) -> object:
    return "the received data was modified in transit" if isinstance(error, NotAuthenticError) else error


def _configure_tcp(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform.startswith("linux"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENT_SECONDS // 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _SILENT_SECONDS // 6)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
        # Not TCP_USER_TIMEOUT, which would also end connections to peers that are alive but too busy to read for a
        # while.
