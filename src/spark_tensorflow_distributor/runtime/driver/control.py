"""Requests to a run, from the user and from callbacks."""

import logging
import threading
from typing import Any

from ...errors import RunCancelledError

_log = logging.getLogger(__name__)

# The value of ``stopped_by`` when the user interrupts a notebook's kernel.
INTERRUPT = "An interrupt"


class RunControl:
    """Requests to end a run; they may come from any thread.

    Attributes:
        stopped_by: Who made the first request to stop training early; "" if nobody did.
    """

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._stops_all = False
        self._stopped_fits: list[int | None] = []
        self.stopped_by = ""

    def stop(self, by: str) -> None:
        """End training gracefully, after the current epoch of every ``fit``.

        Args:
            by: Who makes the request, for the report.
        """
        with self._lock:
            self._stops_all = True
            self.stopped_by = self.stopped_by or by

    def stop_fit(self, fit: int | None, by: str) -> None:
        """End one ``fit`` gracefully, or the custom loop (None)."""
        with self._lock:
            if fit not in self._stopped_fits:
                self._stopped_fits.append(fit)
            self.stopped_by = self.stopped_by or by

    @property
    def stops(self) -> dict[str, Any]:
        """The requests to end training gracefully, for the workers: ``all``, or the numbers of the ``fits``."""
        with self._lock:
            return {"all": self._stops_all, "fits": list(self._stopped_fits)}

    def cancel(self) -> None:
        """End the run without a value."""
        self._cancelled.set()

    def check(self) -> None:
        """Check that the run may continue.

        Raises:
            RunCancelledError: It was cancelled.
        """
        if self._cancelled.is_set():
            raise RunCancelledError("The run was cancelled, by RunHandle.cancel() or by a second interrupt.")

    def check_before_start(self) -> None:
        """Check that the run may start.

        Raises:
            RunCancelledError: It was cancelled, or interrupted before there was anything to keep.
        """
        self.check()
        if self.stopped_by == INTERRUPT:
            raise RunCancelledError("The run was interrupted before its workers had started.")

    def sleep(self, seconds: float) -> None:
        """Wait for some time, or until the run is cancelled.

        Raises:
            RunCancelledError: The run was cancelled.
        """
        self._cancelled.wait(seconds)
        self.check()
