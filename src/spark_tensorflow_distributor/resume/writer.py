"""Writes checkpoints in the background."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from ..formatting import one_line, sentence
from . import snapshot
from .background import Background
from .names import lane_of
from .settings import Report
from .store import CheckpointStore


@dataclass(frozen=True)
class _Checkpoint:
    name: str
    facts: snapshot.Facts
    state: object


class CheckpointWriter:
    """Writes checkpoints on a background thread, one at a time.

    Args:
        store: Receives the checkpoints.
        report: Called after each write with the checkpoint's name, its size in bytes, the seconds that the write took,
            and its position in ``fit``.
        warn: Called with a message when a write fails.

    Attributes:
        seconds: Duration of the last successful write, in seconds; 0 before it.
    """

    def __init__(self, store: CheckpointStore, report: Report, warn: Callable[[str], None]) -> None:
        self._store, self._report, self._warn = store, report, warn
        self._background = Background("spark-tensorflow-checkpoints", self._write)
        self.seconds = 0.0

    def put(self, name: str, facts: snapshot.Facts, state: object) -> None:
        """Queue a checkpoint; it replaces a waiting checkpoint of the same lane.

        Args:
            name: The checkpoint's name.
            facts: The checkpoint's metadata, as JSON; the name and the time are added.
            state: The checkpoint's contents (see ``snapshot.write``), which must no longer change.
        """
        checkpoint = _Checkpoint(name, {**facts, "name": name, "time": time.time()}, state)
        self._background.put(lane_of(name), checkpoint)

    def flush(self) -> None:
        """Wait until everything is written."""
        self._background.join()

    def _write(self, checkpoint: _Checkpoint) -> None:
        started, size = time.monotonic(), 0

        def write(file: BinaryIO) -> None:
            nonlocal size
            snapshot.write(file, checkpoint.facts, checkpoint.state)
            size = file.tell()

        try:
            self._store.put(checkpoint.name, write)
        except Exception as error:  # training continues: the last checkpoint still exists, and the next may succeed
            self._warn(
                f"The checkpoint {self._store.describe(checkpoint.name)} could not be written: "
                f"{sentence(one_line(error))} Training continues; until a later checkpoint succeeds, a restart "
                "resumes from the previous one."
            )
        else:
            self.seconds = round(time.monotonic() - started, 3)
            position = {key: checkpoint.facts[key] for key in ("fit", "epoch", "step") if key in checkpoint.facts}
            self._report({"name": checkpoint.name, "bytes": size, "seconds": self.seconds, **position})
