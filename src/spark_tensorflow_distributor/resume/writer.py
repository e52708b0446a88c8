"""Writes checkpoints in the background."""

import time
from collections.abc import Callable
from typing import Any, BinaryIO

from . import snapshot
from .background import Background
from .names import lane_of
from .store import CheckpointStore


class Writer:
    """One at a time.

    Args:
        vault: where to.
        tell: is told of each checkpoint that was kept: name, bytes and seconds.
        warn: is told of one that could not be.

    Attributes:
        seconds: that the last one took.
    """

    def __init__(
        self, vault: CheckpointStore, tell: Callable[[dict[str, Any]], None], warn: Callable[[str], None]
    ) -> None:
        self._vault, self._tell, self._warn = vault, tell, warn
        self._background = Background("spark-tensorflow-checkpoints", self._write)
        self.seconds = 0.0

    def put(self, name: str, facts: dict[str, Any], state: Any) -> None:
        """Write this one soon. One of the same lane that still waits is given up for it."""
        self._background.put(lane_of(name), (name, {**facts, "name": name, "time": time.time()}, state))

    def flush(self) -> None:
        """Return when all is written."""
        self._background.join()

    def _write(self, checkpoint: tuple[str, dict[str, Any], Any]) -> None:
        name, facts, state = checkpoint
        started, size = time.monotonic(), 0

        def write(file: BinaryIO) -> None:
            nonlocal size
            snapshot.write(file, facts, state)
            size = file.tell()

        try:
            self._vault.put(name, write)
        except Exception as error:  # training goes on: the next one may succeed, and the last one is still there
            self._warn(
                f"The checkpoint {self._vault.where(name)} could not be written: {type(error).__name__}: {error}. "
                "Training goes on; until a later one succeeds, a restart begins at the one before."
            )
        else:
            self.seconds = round(time.monotonic() - started, 3)
            self._tell({"name": name, "bytes": size, "seconds": self.seconds, **_place(facts)})


def _place(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: facts[key] for key in ("fit", "epoch", "step") if key in facts}
