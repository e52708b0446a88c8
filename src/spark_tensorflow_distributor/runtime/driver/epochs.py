"""Handles the epochs that the workers of one launch report."""

import time
from collections.abc import Mapping
from typing import Any

from .callbacks import CallbackList
from .control import INTERRUPT, RunControl
from .history import AttemptHistory
from .loggers import run_log as _log
from .report import RunReport
from .shard_balance import Command

_NO_STOPS = {"all": False, "fits": []}


class EpochEvents:
    """Records epochs, calls the run's callbacks, and tells the workers when to stop.

    Args:
        report: Receives the metrics of every epoch, and the state of the workers.
        attempt: Number of the attempt.
        callbacks: The run's callbacks.
        control: The requests to end the run.

    Attributes:
        seconds: Time spent in callbacks.
    """

    def __init__(self, report: RunReport, attempt: int, callbacks: CallbackList, control: RunControl) -> None:
        self._report, self._callbacks, self._control = report, callbacks, control
        self._history = AttemptHistory(report.history, attempt)
        report.vitals.clear()  # these are from an earlier attempt
        self._training: set[int] = set()  # ranks whose trainer can receive requests
        self._sent: Mapping[str, Any] = _NO_STOPS
        self.seconds = 0.0

    def take(self, rank: int, message: Mapping[str, Any]) -> list[Command]:
        """Record the epochs of a message. The answer lets the worker discard the message and begin the next epoch."""
        for entry in self._history.take(message):
            started = time.monotonic()
            stopped_by = self._callbacks.on_epoch_end(entry)
            self.seconds += time.monotonic() - started
            if stopped_by is not None:
                self._control.stop_fit(entry["fit"], stopped_by)
        return [(rank, {"type": "epochs_taken", "number": message["number"], "stops": self._control.stops})]

    def on_alive(self, rank: int, message: Mapping[str, Any]) -> None:
        """Record the state of a rank's trainer."""
        self._report.vitals[rank] = {name: value for name, value in message.items() if name != "type"}

    def on_phase(self, rank: int) -> list[Command]:
        """Handle the first message from a rank's trainer: there may be requests from before it started."""
        if rank in self._training:
            return []
        self._training.add(rank)
        return self.on_connected(rank)

    def on_connected(self, rank: int) -> list[Command]:
        """Repeat requests that may have been lost with an earlier connection."""
        stops = self._control.stops
        return [(rank, _request(stops))] if rank in self._training and stops != _NO_STOPS else []

    def new_requests(self) -> list[Command]:
        """Return the commands for requests that have been made since the last call.

        Raises:
            RunCancelledError: The run was cancelled.
        """
        self._control.check()
        stops = self._control.stops
        if stops == self._sent:
            return []
        self._sent = stops
        _log.warning(
            "%s stops training: %s ends after its current epoch, as with Keras' EarlyStopping.%s",
            self._control.stopped_by, "every fit()" if stops["all"] else "this fit()",
            " Interrupt again to cancel the run." if self._control.stopped_by == INTERRUPT else "",
        )  # fmt: skip
        return [(rank, _request(stops)) for rank in sorted(self._training)]


def _request(stops: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "stop_training", "stops": stops}
