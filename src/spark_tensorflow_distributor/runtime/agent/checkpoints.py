"""Transfers checkpoints between a worker and the driver.

Each transfer uses a separate connection, so that a large one delays neither the worker's messages nor its training.
"""

import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import BinaryIO

from ...formatting import one_line, sentence
from ...resume.background import Background
from ...resume.names import lane_of
from ...transport.sealing import Protection
from ..sealed_socket import SealedSocket
from ..wire import Message, pieces
from .link import open_connection

# Time limit for each piece of a checkpoint.
_TRANSFER_SECONDS = 30.0
# Time limit for the driver to begin serving this worker, and the interval of heartbeats until then.
_TURN_SECONDS = 600.0
_HEARTBEAT_SECONDS = 2.0


class CheckpointTransfer:
    """Fetches a worker's checkpoints from the driver and sends new ones in the background.

    Args:
        addresses: The addresses of the driver's channel.
        secret: The launch's secret.
        rank: This worker's rank.
        directory: Where to keep fetched checkpoints, in unnamed files.
        protection: See ``RunPlan``.

    Attributes:
        warnings: Warnings about failed transfers. Another thread adds them, and the caller removes them.
    """

    def __init__(
        self,
        addresses: Sequence[tuple[str, int]],
        secret: bytes,
        rank: int,
        directory: str,
        protection: Protection = "integrity",
    ) -> None:
        self._addresses, self._secret, self._rank, self._directory = addresses, secret, rank, directory
        self._protection = protection
        self.warnings: deque[str] = deque()
        self._background = Background("spark-tensorflow-checkpoints", self._deliver)

    def fetch(self, heartbeat: Callable[[], None]) -> dict[str, BinaryIO]:
        """Fetch the checkpoints that the driver keeps for this rank, by name.

        Args:
            heartbeat: Called after each piece.

        Raises:
            OSError: The driver cannot be reached, the data was changed on its way, or the disk is full.
            EOFError: The connection was lost.
        """
        files: dict[str, BinaryIO] = {}
        with self._connect({"type": "fetch"}) as connection:
            for name, size in _wait_for_turn(connection, heartbeat)["commits"]:
                file: BinaryIO = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 (outlives this function)
                files[name] = file
                for piece in connection.receive_bytes(size):
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
        except (OSError, EOFError, ValueError) as error:
            self.warnings.append(
                f"Checkpoint {name} did not reach the driver: {sentence(one_line(error))} Training continues; until "
                "the next checkpoint arrives, a restart would resume from the previous one."
            )

    def _send(self, name: str, file: BinaryIO) -> None:
        size = file.seek(0, 2)
        with self._connect({"type": "commit", "name": name, "size": size}) as connection:
            connection.send_bytes(pieces(file, size))
            answer = connection.receive()
            if answer["type"] != "commit_taken":
                raise OSError(str(answer.get("reason")))

    def _connect(self, hello: Message) -> SealedSocket:
        hello = {**hello, "rank": self._rank}
        connection, _ = open_connection(self._addresses, self._secret, hello, protection=self._protection)
        if connection is None:
            raise ConnectionError(f"the driver's channel at {self._addresses} cannot be reached")
        connection.socket.settimeout(_TRANSFER_SECONDS)
        return connection


def _wait_for_turn(connection: SealedSocket, heartbeat: Callable[[], None]) -> Message:
    """Return the driver's first message. The driver serves only some workers at a time, while the others wait."""
    deadline = time.monotonic() + _TURN_SECONDS
    connection.socket.settimeout(_HEARTBEAT_SECONDS)
    while True:
        try:
            message = connection.receive()
        except TimeoutError:
            if time.monotonic() > deadline:
                raise
            heartbeat()
        else:
            connection.socket.settimeout(_TRANSFER_SECONDS)
            return message
