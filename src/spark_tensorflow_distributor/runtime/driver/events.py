"""The queue between the channel's event loop and the thread that called ``run``."""

import queue
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, TypeAlias

# (rank, message)
Event: TypeAlias = tuple[int, dict[str, Any]]

# Heartbeats wait until another event arrives, but at most this long, so that not every one of thousands wakes a thread.
_QUIET_SECONDS = 0.25


class Events:
    """Hands over events: lines of output last, everything else in the order of arrival.

    A slow terminal therefore delays no failure and no command. The number of lines that can wait is limited by the room
    that the channel grants to each agent.
    """

    def __init__(self) -> None:
        self._urgent: deque[Event] = deque()
        self._lines: deque[Event] = deque()
        self._condition = threading.Condition()
        self._is_waiting = False

    def put(self, event: Event) -> None:
        """Add an event."""
        kind = _kind(event[1])
        with self._condition:
            (self._lines if kind == "log" else self._urgent).append(event)
            if self._is_waiting and kind != "alive":
                self._condition.notify()

    def get(self, timeout: float | None = None) -> Event:
        """Remove and return the next event.

        Raises:
            queue.Empty: No event has arrived within ``timeout`` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        with self._condition:
            while True:
                if self._urgent:
                    return self._urgent.popleft()
                if self._lines:
                    return self._lines.popleft()
                left = _QUIET_SECONDS if end is None else min(end - time.monotonic(), _QUIET_SECONDS)
                if left <= 0:
                    raise queue.Empty
                self._is_waiting = True
                self._condition.wait(left)
                self._is_waiting = False

    def empty(self) -> bool:
        """Return whether no event is waiting."""
        return not self._urgent and not self._lines


def _kind(message: Mapping[str, Any]) -> str:
    return str(message.get("type", ""))
