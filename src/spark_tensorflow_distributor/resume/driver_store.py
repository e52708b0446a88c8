"""Keeps checkpoints on the driver, for a run without a ``checkpoint_dir``."""

import contextlib
import tempfile
import threading
from collections.abc import Iterable
from typing import BinaryIO

from .names import MANUAL_LANE, lane_of, outdated


class DriverCheckpointStore:
    """Keeps checkpoints as unnamed files in the driver's temporary directory, until the run ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[str, BinaryIO] = {}

    def put(self, name: str, pieces: Iterable[bytes]) -> None:
        """Store a checkpoint completely or not at all.

        Raises:
            OSError: If the file cannot be written, for example because the disk is full.
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
        """Return the names of all checkpoints, sorted."""
        with self._lock:
            return sorted(self._files)

    def for_rank(self, rank: int) -> list[tuple[str, BinaryIO]]:
        """Return the checkpoints that a rank needs when it starts.

        Every rank reads the checkpoints that the training function saves itself; those of ``fit`` go to rank 0 only,
        which broadcasts them.
        """
        with self._lock:
            return [(name, file) for name, file in self._files.items() if rank == 0 or lane_of(name) == MANUAL_LANE]

    def close(self) -> None:
        """Delete all checkpoints."""
        with self._lock:
            for file in self._files.values():
                with contextlib.suppress(OSError):
                    file.close()
            self._files.clear()
