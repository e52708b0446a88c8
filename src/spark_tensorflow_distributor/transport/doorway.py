"""Admits authenticated connections, no matter what other peers do."""

from __future__ import annotations

import contextlib
import errno
import logging
import selectors
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Container
from dataclasses import dataclass, field

from .handshake import ANSWER_BYTES, Handshake, SessionKeys

_log = logging.getLogger(__name__)

# Time limit for the answer to a challenge.
STRANGER_SECONDS = 5.0
# Maximum number of connections to accept before other events are served.
_ACCEPTED_AT_ONCE = 64
# How long to accept no connections if the process has run out of file descriptors.
_PAUSE_SECONDS = 0.1
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass
class _Stranger:
    """A connection whose peer has not proved that it holds the secret."""

    challenge: bytes
    deadline: float
    answer: bytearray = field(default_factory=bytearray)


class Doorway:
    """A listener in an event loop, and its connections that are not authenticated yet.

    The loop calls ``key.data(mask)`` for each event of its selector, and :meth:`expire` about once a second.

    Args:
        listener: The listening socket; the caller closes it.
        handshake: This end's handshakes.
        selector: The loop's selector.
        admit: Called for each authenticated connection with its non-blocking socket, its peer's number and its keys. If
            it raises OSError, the socket is closed.
        expected: The numbers of the peers that may enter.
        name: The listener's name in warnings.
        limit: Maximum number of connections that are not authenticated yet; beyond it, the oldest one is closed.

    Attributes:
        rejected: Number of connections whose peers did not hold the secret or were not expected.
    """

    def __init__(
        self,
        listener: socket.socket,
        handshake: Handshake,
        selector: selectors.BaseSelector,
        admit: Callable[[socket.socket, int, SessionKeys], None],
        *,
        expected: Container[int],
        name: str,
        limit: int,
    ) -> None:
        self._listener, self._handshake, self._selector = listener, handshake, selector
        self._admit, self._expected, self._name, self._limit = admit, expected, name, limit
        self._strangers: OrderedDict[socket.socket, _Stranger] = OrderedDict()  # the oldest first
        self._paused_until: float | None = None
        self._has_warned_of_exhaustion = False
        self.rejected = 0
        listener.setblocking(False)
        selector.register(listener, selectors.EVENT_READ, self._accept)

    def __len__(self) -> int:
        return len(self._strangers)

    def expire(self, now: float) -> None:
        """Close connections that have taken too long, and resume accepting after a pause."""
        while self._strangers:
            sock, stranger = next(iter(self._strangers.items()))
            if now <= stranger.deadline:
                break
            self._drop(sock)
        if self._paused_until is not None and now >= self._paused_until:
            self._paused_until = None
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        """Close the connections that are not authenticated yet, and unregister the listener."""
        while self._strangers:
            self._drop(next(iter(self._strangers)))
        if self._paused_until is None:
            self._selector.unregister(self._listener)
        self._paused_until = None

    def _accept(self, _: int) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                sock, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._make_room(error)
                    return
                continue  # that peer has gone already; others may be waiting
            try:
                sock.setblocking(False)
                challenge = self._handshake.challenge()
                if sock.send(challenge) < len(challenge):
                    raise BlockingIOError
            except OSError:
                sock.close()
                continue
            if len(self._strangers) >= self._limit:
                self._drop(next(iter(self._strangers)))
            self._strangers[sock] = _Stranger(challenge, time.monotonic() + STRANGER_SECONDS)
            self._selector.register(
                sock, selectors.EVENT_READ, lambda _, sock=sock, address=address: self._hear(sock, address)
            )

    def _make_room(self, error: OSError) -> None:
        """Drop the oldest stranger, or else pause accepting, as the listener would otherwise stay readable."""
        if not self._has_warned_of_exhaustion:
            self._has_warned_of_exhaustion = True
            _log.warning(
                "No more connections to %s can be accepted: %s. Each worker needs one. Raise the limit of open files "
                "(ulimit -n); until then, workers wait until one is free.", self._name, error,
            )  # fmt: skip
        if self._strangers:
            self._drop(next(iter(self._strangers)))
            return
        self._paused_until = time.monotonic() + _PAUSE_SECONDS
        self._selector.unregister(self._listener)

    def _hear(self, sock: socket.socket, address: object) -> None:
        stranger = self._strangers.get(sock)
        if stranger is None:
            return
        try:
            data = sock.recv(ANSWER_BYTES - len(stranger.answer))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        stranger.answer += data
        if data and len(stranger.answer) < ANSWER_BYTES:
            return
        if not data:
            self._drop(sock)
            return
        admission = self._handshake.check(stranger.challenge, bytes(stranger.answer))
        if admission is None or admission.peer not in self._expected:
            self._reject(address)
            self._drop(sock)
            return
        self._selector.unregister(sock)
        del self._strangers[sock]
        try:
            if sock.send(admission.proof) < len(admission.proof):
                raise BlockingIOError
            self._admit(sock, admission.peer, admission.keys)
        except OSError:  # the peer will connect again
            sock.close()

    def _reject(self, address: object) -> None:
        self.rejected += 1
        if self.rejected == 1:
            _log.warning(
                "Rejected a connection to %s from %s: the peer does not hold the secret, or is not expected here. "
                "Further rejections are only counted.",
                self._name, address,
            )  # fmt: skip

    def _drop(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        del self._strangers[sock]
        with contextlib.suppress(OSError):
            sock.close()
