"""Receives checkpoints and results from the agents, and sends checkpoints, over separate connections.

A few threads serve these connections, because they wait for disks. A large transfer delays neither the messages of its
worker nor those of others.
"""

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

from ...resume.driver_store import DriverCheckpointStore
from ...transport.handshake import NotAuthenticError
from ..sealed_socket import SealedSocket
from ..wire import CHUNK_BYTES, Message

_log = logging.getLogger(__name__)

KINDS = ("commit", "fetch", "result")
# Time limit for each piece.
_PIECE_SECONDS = 30.0
_THREADS = 16


class Transfers:
    """Serves transfers, a few at a time.

    Args:
        checkpoints: Keeps the checkpoints; None if the driver keeps none.
        put: Receives the events ``committed`` and ``result``.
    """

    def __init__(
        self, checkpoints: DriverCheckpointStore | None, put: Callable[[tuple[int, dict[str, Any]]], None]
    ) -> None:
        self._checkpoints, self._put = checkpoints, put
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="spark-tensorflow-transfers")
        self._open: set[SealedSocket] = set()
        self._lock = threading.Lock()
        self._is_closed = False

    def serve(self, rank: int, connection: SealedSocket, hello: Message) -> None:
        """Serve a connection in the background, and close it.

        Args:
            rank: The rank at its other end.
            connection: The connection.
            hello: Its first message.
        """
        with self._lock:
            if self._is_closed:
                connection.close()
                return
            self._open.add(connection)
        try:
            self._threads.submit(self._serve, rank, connection, hello)
        except RuntimeError as error:  # the process cannot start another thread
            _log.warning("A transfer of rank %d cannot be served: %s", rank, error)
            connection.close()

    def close(self) -> None:
        """End all transfers."""
        with self._lock:
            self._is_closed = True
            for connection in self._open:
                with contextlib.suppress(OSError):  # wakes the thread that reads from it
                    connection.socket.shutdown(socket.SHUT_RDWR)
        self._threads.shutdown(wait=True)

    def _serve(self, rank: int, connection: SealedSocket, hello: Message) -> None:
        kind = hello["type"]
        try:
            connection.socket.settimeout(_PIECE_SECONDS)
            if kind == "result":
                self._take_result(rank, connection, int(hello["size"]))
            elif self._checkpoints is not None and kind == "commit":
                self._take_checkpoint(self._checkpoints, rank, connection, hello)
            elif self._checkpoints is not None:
                self._send_checkpoints(self._checkpoints, rank, connection)
        except NotAuthenticError:
            _log.warning("Something between the hosts has changed a %s of rank %d; it was rejected.", kind, rank)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            _log.debug("A transfer (%s) of rank %d ended: %s", kind, rank, error)
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _take_result(self, rank: int, connection: SealedSocket, size: int) -> None:
        chunks = list(connection.receive_bytes(size))
        self._put((rank, {"type": "result", "size": size, "chunks": chunks}))
        connection.send({"type": "result_taken"})

    def _take_checkpoint(
        self, checkpoints: DriverCheckpointStore, rank: int, connection: SealedSocket, hello: Message
    ) -> None:
        name, size = str(hello["name"]), int(hello["size"])
        pieces = connection.receive_bytes(size)
        try:
            checkpoints.put(name, pieces)
        except OSError as error:
            for _ in pieces:  # a connection that is closed with unread data may lose the answer
                pass
            connection.send({"type": "commit_refused", "reason": f"on the driver: {error}"})
            raise
        connection.send({"type": "commit_taken"})
        self._put((rank, {"type": "committed", "name": name, "bytes": size}))

    def _send_checkpoints(self, checkpoints: DriverCheckpointStore, rank: int, connection: SealedSocket) -> None:
        kept = [(name, file, file.seek(0, 2)) for name, file in checkpoints.for_rank(rank)]
        connection.send({"commits": [[name, size] for name, _, size in kept]})
        for _, file, size in kept:
            connection.send_bytes(_pieces(file, size))


def _pieces(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Read a file without moving its position, because other threads read it, too."""
    for offset in range(0, size, CHUNK_BYTES):
        yield os.pread(file.fileno(), min(CHUNK_BYTES, size - offset), offset)
