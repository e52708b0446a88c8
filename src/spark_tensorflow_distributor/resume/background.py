"""Work that is done in a thread, one item at a time, of which only the newest of a kind is wanted."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Background(Generic[Item]):
    """A thread that is there while there is something to do.

    Args:
        name: of the thread.
        work: does one item; must not raise.
    """

    def __init__(self, name: str, work: Callable[[Item], None]) -> None:
        self._name, self._do = name, work
        self._lock = threading.Lock()
        self._waiting: dict[str, Item] = {}
        self._thread: threading.Thread | None = None

    def put(self, lane: str, item: Item) -> Item | None:
        """Have it done soon; returns the item of the same lane that waited still, and is given up for it."""
        with self._lock:
            outdated = self._waiting.pop(lane, None)
            self._waiting[lane] = item
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
        return outdated

    def join(self, seconds: float | None = None) -> None:
        """Return when all is done, or after ``seconds``."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                item = self._waiting.pop(next(iter(self._waiting)))
            self._do(item)
