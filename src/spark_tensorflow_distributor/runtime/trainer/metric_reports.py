"""Sends the metrics that a training function reports itself, with ``get_context().report``."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..metric_values import reported_entry

# Minimum seconds between two messages. A loop may report thousands of steps per second.
_SEND_SECONDS = 0.2

Send = Callable[[dict[str, Any]], None]


class MetricReports:
    """Collects metrics, and sends them several times a second.

    Args:
        send: Sends a message to the agent.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._waiting: list[dict[str, Any]] = []
        self._last = time.monotonic()
        self._last_sent = 0.0
        self._has_timer = False

    def report(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Queue the metrics of a step.

        Raises:
            ConfigurationError: The step or a metric is not a number.
        """
        entry = reported_entry(step, metrics, 0.0)
        with self._lock:
            now = time.monotonic()
            self._waiting.append({**entry, "seconds": now - self._last})
            self._last = now
            if now - self._last_sent >= _SEND_SECONDS:
                self._send_waiting(now)
            elif not self._has_timer:
                self._has_timer = True
                timer = threading.Timer(_SEND_SECONDS, self.flush)
                timer.daemon = True
                timer.start()

    def flush(self) -> None:
        """Send the queued metrics."""
        with self._lock:
            self._has_timer = False
            self._send_waiting(time.monotonic())

    def _send_waiting(self, now: float) -> None:
        if self._waiting:
            self._send({"type": "epochs", "entries": self._waiting})
            self._waiting, self._last_sent = [], now
