"""Admits authenticated connections, whatever other peers do."""

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
# Connections accepted in one go, before others are served.
_ACCEPTED_AT_ONCE = 64
# How long to accept nobody if the process has no descriptor left.
_PAUSE_SECONDS = 0.1
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass
class _Stranger:
    """A connection whose peer has not proved itself."""

    challenge: bytes
    deadline: float
    answer: bytearray = field(default_factory=bytearray)


class Doorway:
    """A listener in an event loop, with the connections that have not proved themselves.

    The loop calls ``key.data(mask)`` for each event of its selector, and :meth:`expire` about once a second.

    Args:
        listener: The listening socket; the caller closes it.
        handshake: This end of all handshakes.
        selector: The loop's selector.
        admit: Called with the socket, non-blocking, of an authenticated connection, with its peer's number and its
            keys. It may raise OSError, which closes the socket.
        expected: The numbers of the peers that may enter.
        name: What a warning calls the listener.
        limit: Maximum number of connections that have not proved themselves; beyond it, the oldest is closed.

    Attributes:
        rejected: Number of connections whose peers did not hold the secret.
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
        """Close connections that have taken too long, and accept again after a pause."""
        while self._strangers:
            sock, stranger = next(iter(self._strangers.items()))
            if now <= stranger.deadline:
                break
            self._drop(sock)
        if self._paused_until is not None and now >= self._paused_until:
            self._paused_until = None
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        """Close the connections that have not proved themselves, and stop listening to the listener's events."""
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
                continue  # that peer has already gone; others are waiting
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
        """Give up the oldest stranger, or accept nobody for a moment: the listener would otherwise stay readable."""
        if not self._has_warned_of_exhaustion:
            self._has_warned_of_exhaustion = True
            _log.warning(
                "No more connections to %s can be accepted: %s. Each worker needs one. Raise the limit of open files "
                "(ulimit -n); until then, workers wait for a free one.", self._name, error,
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
        except OSError:  # the peer connects again
            sock.close()

    def _reject(self, address: object) -> None:
        self.rejected += 1
        if self.rejected == 1:
            _log.warning(
                "Rejected a connection to %s from %s: the peer does not hold the secret. Others are only counted.",
                self._name, address,
            )  # fmt: skip

    def _drop(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        del self._strangers[sock]
        with contextlib.suppress(OSError):
            sock.close()
