"""Carries checkpoints between a worker and the driver, each over a connection of its own.

So that a large one holds up neither the worker's other messages nor its trainer.
"""

import socket
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from ...resume.background import Background
from ...resume.names import lane_of
from ..wire import CHUNK_BYTES, receive, receive_bytes
from .link import open_connection

# For each piece, not for the whole.
_SECONDS = 30.0


class CheckpointTransfer:
    """One worker's.

    Args:
        addresses: where the driver listens.
        secret: the run's key.
        rank: of this worker.
        directory: for files that come from the driver, without a name.

    Attributes:
        warnings: what went wrong since somebody looked; from another thread.
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
        self._background = Background("spark-tensorflow-courier", self._deliver)

    def fetch(self, alive: Callable[[], None]) -> dict[str, BinaryIO]:
        """The checkpoints that the driver keeps and this worker needs, by name.

        Args:
            alive: called now and then.

        Raises:
            OSError: the driver cannot be reached, or the disk is full.
            EOFError: the connection was lost.
        """
        files: dict[str, BinaryIO] = {}
        with self._connect({"type": "fetch"}) as connection:
            for name, size in receive(connection)["commits"]:
                file: BinaryIO = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 (outlives this function)
                files[name] = file
                for piece in receive_bytes(connection, size):
                    file.write(piece)
                    alive()
                file.flush()
        return files

    def put(self, name: str, file: BinaryIO) -> None:
        """Have a checkpoint sent. One of the same lane that still waits is given up for it."""
        outdated = self._background.put(lane_of(name), (name, file))
        if outdated is not None:
            outdated[1].close()

    def close(self, seconds: float) -> None:
        """Let what is under way arrive, for at most so long."""
        self._background.join(seconds)

    def _deliver(self, checkpoint: tuple[str, BinaryIO]) -> None:
        name, file = checkpoint
        try:
            with file:
                self._send(name, file)
        except (OSError, EOFError) as error:
            self.warnings.append(
                f"The checkpoint {name} did not reach the driver: {type(error).__name__}: {error}. Training goes "
                "on; until a later one does, a restart begins at the one before."
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

    def _connect(self, hello: dict[str, Any]) -> socket.socket:
        connection, _ = open_connection(self._addresses, self._secret, {**hello, "rank": self._rank})
        if connection is None:
            raise ConnectionError(f"the driver's channel at {self._addresses} cannot be reached")
        connection.settimeout(_SECONDS)
        return connection
