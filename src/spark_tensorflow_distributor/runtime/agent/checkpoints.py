"""Transfers checkpoints between a worker and the driver.

Each travels over a connection of its own, so that a large one delays neither the worker's messages nor its training.
"""

import socket
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from typing import BinaryIO

from ...formatting import one_line
from ...resume.background import Background
from ...resume.names import lane_of
from ..wire import CHUNK_BYTES, Message, receive, receive_bytes
from .link import open_connection

# Time limit for each piece of a checkpoint.
_TRANSFER_SECONDS = 30.0


class CheckpointTransfer:
    """Fetches a worker's checkpoints from the driver and sends new ones in the background.

    Args:
        addresses: The addresses of the driver's channel.
        secret: Key of the launch.
        rank: This worker's rank.
        directory: Where to keep fetched checkpoints, in unnamed files.

    Attributes:
        warnings: Warnings about failed transfers, which the caller removes; filled by another thread.
    """

    def __init__(
        self,
        addresses: Sequence[tuple[str, int]],
        secret: bytes,
        rank: int,
        directory: str,
    ) -> None:
        self._addresses, self._secret, self._rank, self._directory = addresses, secret, rank, directory
        self.warnings: deque[str] = deque()
        self._background = Background("spark-tensorflow-checkpoints", self._deliver)

    def fetch(self, heartbeat: Callable[[], None]) -> dict[str, BinaryIO]:
        """Fetch the checkpoints that the driver keeps for this rank, by name.

        Args:
            heartbeat: Called after each piece.

        Raises:
            OSError: The driver cannot be reached, or the disk is full.
            EOFError: The connection was lost.
        """
        files: dict[str, BinaryIO] = {}
        with self._connect({"type": "fetch"}) as connection:
            for name, size in receive(connection)["commits"]:
                file: BinaryIO = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 (outlives this function)
                files[name] = file
                for piece in receive_bytes(connection, size):
                    file.write(piece)
                    heartbeat()
                file.flush()
        return files

    def put(self, name: str, file: BinaryIO) -> None:
        """Queue a checkpoint for sending; it replaces one of the same lane that is still queued."""
        outdated = self._background.put(lane_of(name), (name, file))
        if outdated is not None:
            outdated[1].close()

    def close(self, seconds: float) -> None:
        """Wait for queued checkpoints to be sent, for at most ``seconds``."""
        self._background.join(seconds)

    def _deliver(self, checkpoint: tuple[str, BinaryIO]) -> None:
        name, file = checkpoint
        try:
            with file:
                self._send(name, file)
        except (OSError, EOFError) as error:
            self.warnings.append(
                f"Checkpoint {name} did not reach the driver: {one_line(error)}. Training continues; until "
                "the next checkpoint arrives, a restart would resume from the previous one."
            )

    def _send(self, name: str, file: BinaryIO) -> None:
        size = file.seek(0, 2)
        file.seek(0)
        with self._connect({"type": "commit", "name": name, "size": size}) as connection:
            while piece := file.read(CHUNK_BYTES):
                connection.sendall(piece)
            answer = receive(connection)
            if answer["type"] != "commit_taken":
                raise OSError(str(answer.get("reason")))

    def _connect(self, hello: Message) -> socket.socket:
        connection, _ = open_connection(self._addresses, self._secret, {**hello, "rank": self._rank})
        if connection is None:
            raise ConnectionError(f"the driver's channel at {self._addresses} cannot be reached")
        connection.settimeout(_TRANSFER_SECONDS)
        return connection
