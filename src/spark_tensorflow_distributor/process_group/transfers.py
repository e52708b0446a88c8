"""The transfers of an operation, in which a member sends and receives at the same time in a single thread."""

from __future__ import annotations

import itertools
import select
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from ..transport.sealing import TAG_BYTES
from .connection import Connection
from .frames import FRAME_BYTES, Operation

# One-dimensional, contiguous.
Array: TypeAlias = "np.ndarray[Any, Any]"

_READ = select.POLLIN | select.POLLERR | select.POLLHUP


class Sender:
    """Sends arrays to a peer.

    Args:
        connection: The connection to the peer.
        operation: The operation that they belong to.
        arrays: In order. If there is no data at all, one empty frame is sent.
        follows: The receiver that fills the arrays after the first one, in the same order; each of their bytes is sent
            only after it has been received and added. None if all data is ready.
    """

    def __init__(
        self, connection: Connection, operation: Operation, arrays: Sequence[Array], follows: Receiver | None = None
    ) -> None:
        self.connection, self._operation = connection, operation
        self._views = [array.view(np.uint8).data for array in arrays]
        self._sendable = len(self._views[0]) if self._views else 0
        self._follows = follows
        if not sum(map(len, self._views)):
            self._views = []
            connection.queue(operation)

    @property
    def is_done(self) -> bool:
        return not self._views and not self.connection.unsent

    @property
    def is_blocked(self) -> bool:
        """Whether the socket must accept data before this can continue."""
        return bool(self.connection.unsent)

    def advance(self) -> None:
        """Send as much as the socket accepts."""
        while self.connection.send() and self._views:
            view = self._views[0]
            if not view:
                self._views.pop(0)
                continue
            size = min(len(view), FRAME_BYTES)
            if self._follows is not None and size > self._sendable + self._follows.received:
                return
            self._sendable -= size
            self.connection.queue(self._operation, view[:size])
            self._views[0] = view[size:]


class Receiver:
    """Receives arrays from a peer.

    Args:
        connection: The connection to the peer.
        operation: The operation that they belong to.
        arrays: Where to put them, in order.
        terms: Arrays of the same sizes, whose values are added to the received ones. If there are fewer terms than
            arrays, the remaining arrays take the received values. Terms may be of a wider type; sums are then computed
            in that type and rounded.

    Attributes:
        received: Number of bytes received and added so far.
    """

    def __init__(
        self,
        connection: Connection,
        operation: Operation,
        arrays: Sequence[Array],
        terms: Sequence[Array] = (),
    ) -> None:
        self.connection, self._operation = connection, operation
        self.received = 0
        pairs = itertools.zip_longest(arrays, terms)
        self._targets = [(array, term) for array, term in pairs if array.size]
        self._staging = np.empty(FRAME_BYTES if terms else 0, np.uint8)
        self._offset = 0  # where the next frame begins in the first target, in elements of the array
        self._frame: memoryview | None = None  # where the data of the current frame goes
        self._tag = memoryview(bytearray(TAG_BYTES))
        self._missing: list[memoryview] = []  # the parts of the data and of its tag that have not arrived
        self._size = 0  # of the current frame
        self._awaits_empty_frame = not self._targets

    @property
    def is_done(self) -> bool:
        return not self._targets and not self._awaits_empty_frame

    def advance(self) -> None:
        """Receive everything that has arrived."""
        while not self.is_done:
            if self._frame is None and not self._begin():
                return
            while self._missing:
                count = self.connection.receive_into(self._missing[0])
                if not count:
                    return
                self._missing[0] = self._missing[0][count:]
                if not self._missing[0]:
                    self._missing.pop(0)
            self._end()

    def _begin(self) -> bool:
        size = self.connection.receive_header(self._operation)
        if size is None:
            return False
        self._size = size
        if self._awaits_empty_frame:
            if size:
                raise self.connection.lost(f"it sent {size} bytes where none were expected")
            self._frame, self._missing = memoryview(b""), []
            return True
        array, term = self._targets[0]
        left = (array.size - self._offset) * array.itemsize
        if not 0 < size <= left or size % array.itemsize:
            raise self.connection.lost(f"it sent a frame of {size} bytes where {left} are left")
        begin = self._offset * array.itemsize
        self._frame = array.view(np.uint8).data[begin:][:size] if term is None else self._staging.data[:size]
        tag = self._tag[: self.connection.tag_bytes(size)]
        self._missing = [self._frame, tag] if tag else [self._frame]
        return True

    def _end(self) -> None:
        assert self._frame is not None
        self.connection.open(self._frame, self._tag)
        self._frame = None
        if self._awaits_empty_frame:
            self._awaits_empty_frame = False
            return
        array, term = self._targets[0]
        end = self._offset + self._size // array.itemsize
        if term is not None:
            received, part = self._staging[: self._size].view(array.dtype), array[self._offset : end]
            if term.dtype == array.dtype:
                np.add(term[self._offset : end], received, out=part)
            else:
                part[:] = term[self._offset : end] + received.astype(term.dtype)
        self._offset = end
        self.received += self._size
        if end == array.size:
            self._targets.pop(0)
            self._offset = 0


def transfer(senders: Sequence[Sender], receivers: Sequence[Receiver], watched: Iterable[Connection] = ()) -> None:
    """Run transfers until all of them are complete.

    Args:
        senders: The arrays to send.
        receivers: The arrays to receive.
        watched: Connections to watch for farewells: a peer that aborts the operation sends one on all its connections.

    Raises:
        PeerLostError: If a peer is gone.
        FarewellError: If a peer has said why it is leaving.
        DifferentOperationError: If a peer is in another operation.
    """
    poller, masks = select.poll(), dict[Connection, int]()
    unwatched: set[Connection] = set()
    while True:
        for receiver in receivers:
            receiver.advance()
        for sender in senders:
            sender.advance()
        if all(each.is_done for each in senders) and all(each.is_done for each in receivers):
            return
        wanted = {connection: _READ for connection in watched if connection not in unwatched}
        for sender in senders:
            if sender.is_blocked:
                wanted[sender.connection] = wanted.get(sender.connection, 0) | select.POLLOUT
        for receiver in receivers:
            if not receiver.is_done:
                wanted[receiver.connection] = wanted.get(receiver.connection, 0) | _READ
        for connection in masks.keys() - wanted.keys():
            poller.unregister(connection)
            del masks[connection]
        for connection, mask in wanted.items():
            if masks.get(connection) != mask:
                poller.register(connection, mask)
                masks[connection] = mask
        receiving = {receiver.connection for receiver in receivers if not receiver.is_done}
        sending = {sender.connection for sender in senders if not sender.is_done}
        by_fd = {connection.fileno(): connection for connection in masks}
        for fd, events in poller.poll():
            connection = by_fd[fd]
            if (
                events & _READ
                and connection not in receiving
                and connection not in unwatched
                and connection.check(is_needed=connection in sending)
            ):
                unwatched.add(connection)
