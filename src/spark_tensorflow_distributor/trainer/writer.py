"""Writes checkpoints in the background, one at a time, the newest first."""

import threading
import time
from collections.abc import Callable
from typing import Any

from . import snapshot
from .vault import Vault


class Writer:
    """A thread that is there while there is something to write.

    Args:
        vault: where to.
        tell: is told of each checkpoint that was kept: name, bytes and seconds.
        warn: is told of one that could not be.

    Attributes:
        seconds: that the last one took.
    """

    def __init__(self, vault: Vault, tell: Callable[[dict[str, Any]], None], warn: Callable[[str], None]) -> None:
        self._vault, self._tell, self._warn = vault, tell, warn
        self._lock = threading.Condition()
        self._waiting: dict[str, tuple[str, dict[str, Any], Any]] = {}
        self._thread: threading.Thread | None = None
        self.seconds = 0.0

    def put(self, lane: str, name: str, facts: dict[str, Any], state: Any) -> None:
        """Write this one soon. One of the same lane that still waits is given up for it."""
        with self._lock:
            self._waiting[lane] = (name, facts, state)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="spark-tensorflow-checkpoints", daemon=True)
                self._thread.start()

    def flush(self) -> None:
        """Return when all is written."""
        while (thread := self._thread) is not None:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                name, facts, state = self._waiting.pop(next(iter(self._waiting)))
            started = time.monotonic()
            size = [0]

            def write(file: Any, facts: dict[str, Any] = facts, state: Any = state, size: list[int] = size) -> None:
                snapshot.write(file, facts, state)
                size[0] = file.tell()

            try:
                self._vault.put(name, write)
            except Exception as error:  # training goes on: the next one may succeed, and the last one is still there
                self._warn(
                    f"The checkpoint {self._vault.where(name)} could not be written: {type(error).__name__}: {error}. "
                    "Training goes on; until a later one succeeds, a restart begins at the one before."
                )
            else:
                self.seconds = round(time.monotonic() - started, 3)
                self._tell({"name": name, "bytes": size[0], "seconds": self.seconds, **_place(facts)})


def _place(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: facts[key] for key in ("fit", "epoch", "step") if key in facts}
