"""The agent's end of the socket to its trainer."""

import contextlib
import os
import socket
from typing import BinaryIO

from ..wire import FrameReader, Message, frame

_RECEIVE_BYTES = 1 << 16
_MAX_FILES = 16


class TrainerSocket:
    """Sends messages to a trainer, and receives its messages and open files without waiting.

    Args:
        sock: One end of a pair of local sockets; this object closes it.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self._has_ended = False
        self._reader = FrameReader()
        self._descriptors: list[int] = []  # each arrives before the message that refers to it

    def send(self, message: Message) -> None:
        """Send a message, which is lost if the trainer has ended."""
        with contextlib.suppress(OSError):
            self.socket.sendall(frame(message))

    def receive(self) -> list[Message]:
        """Return the messages that have arrived."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self.socket, _RECEIVE_BYTES, _MAX_FILES)
        except BlockingIOError:
            return []
        except OSError:
            data, descriptors = b"", []
        self._descriptors += descriptors
        self._has_ended = not data
        return list(self._reader.feed(data))

    def has_ended(self) -> bool:
        """Return whether the trainer has closed its end, and everything that it sent has been received."""
        return self._has_ended

    def take_file(self) -> BinaryIO:
        """Return the file that came with the message that was received last."""
        return os.fdopen(self._descriptors.pop(0), "rb")

    def close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self.socket.close()
