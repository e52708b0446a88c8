"""The checkpoints that the driver keeps for a run without a checkpoint_dir."""

import contextlib
import tempfile
import threading
from collections.abc import Iterable
from typing import BinaryIO

from .names import lane_of, outdated

# What every rank reads; the rest is rank 0's, which passes it on.
_FOR_ALL = "own"


class DriverCheckpointStore:
    """Files without a name, in the driver's temporary directory, for as long as the run lasts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[str, BinaryIO] = {}

    def take(self, name: str, pieces: Iterable[bytes]) -> None:
        """Keep one; all of it, or nothing.

        Raises:
            OSError: the disk is full.
        """
        file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 (kept)
        try:
            for piece in pieces:
                file.write(piece)
            file.flush()
        except BaseException:
            file.close()
            raise
        with self._lock:
            self._files[name] = file
            for old in outdated(self._files):
                self._files.pop(old).close()

    def names(self) -> list[str]:
        with self._lock:
            return sorted(self._files)

    def for_rank(self, rank: int) -> list[tuple[str, BinaryIO]]:
        """What a rank begins with."""
        with self._lock:
            return [(name, file) for name, file in self._files.items() if rank == 0 or lane_of(name) == _FOR_ALL]

    def close(self) -> None:
        with self._lock:
            for file in self._files.values():
                with contextlib.suppress(OSError):
                    file.close()
            self._files.clear()
