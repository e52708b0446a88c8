"""Work on a background thread, of which only the newest item of each lane matters."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Background(Generic[Item]):
    """Runs queued work on a background thread; a newer item replaces a waiting older one of the same lane.

    The thread exists only while there is work.

    Args:
        name: Name of the thread.
        work: Processes one item; must not raise.
    """

    def __init__(self, name: str, work: Callable[[Item], None]) -> None:
        self._name, self._work = name, work
        self._lock = threading.Lock()
        self._waiting: dict[str, Item] = {}
        self._thread: threading.Thread | None = None

    def put(self, lane: str, item: Item) -> Item | None:
        """Queue an item; returns the waiting item of the same lane that it replaces, if any."""
        with self._lock:
            replaced = self._waiting.pop(lane, None)
            self._waiting[lane] = item
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
        return replaced

    def join(self, seconds: float | None = None) -> None:
        """Wait until the queue is empty, for at most ``seconds``."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                item = self._waiting.pop(next(iter(self._waiting)))
            self._work(item)
