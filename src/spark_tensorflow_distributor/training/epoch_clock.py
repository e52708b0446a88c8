"""Measures the epochs of ``fit``."""

import time
from collections.abc import Mapping
from typing import Any

from .progress import floats_of


class EpochClock:
    """Measures the epochs that this process trains, one after another.

    Args:
        batch_size: Rows per step over all workers; None if unknown.
    """

    def __init__(self, batch_size: int | None) -> None:
        self._batch_size = batch_size
        self.begin()

    def begin(self) -> None:
        """Note that an epoch begins."""
        self._began = self._steps_began = self._last_step = time.monotonic()
        self._steps = 0

    def skipped(self) -> None:
        """Note that the steps before a checkpoint have been skipped."""
        if not self._steps:
            self._steps_began = time.monotonic()

    def after_step(self, count: int) -> None:
        """Note that ``count`` steps are done."""
        self._last_step = time.monotonic()
        self._steps += count

    def entry(self, fit: int, epoch: int, logs: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the entry of the epoch that has just ended, for the run's history.

        Its speed covers the training steps, not the evaluation that follows them, and counts partial batches as full
        ones.
        """
        training = self._last_step - self._steps_began
        rows = self._steps * (self._batch_size or 0)
        speed = rows / training if rows and training > 0 else None
        seconds = time.monotonic() - self._began
        return {
            "fit": fit, "epoch": epoch, "logs": floats_of(logs), "seconds": seconds, "rows_per_second": speed,
        }  # fmt: skip


def restored_entries(fit: int, epochs: list[int], history: Mapping[str, list[object]]) -> list[dict[str, Any]]:
    """Return the entries of epochs that an earlier attempt or run trained, from the history in a checkpoint.

    Metrics that lack values for some epochs, as validation metrics do with ``validation_freq=2``, are left out: Keras'
    history does not say which epochs their values belong to.
    """
    whole = {name: values for name, values in history.items() if len(values) == len(epochs)}
    return [
        {
            "fit": fit, "epoch": epoch, "logs": floats_of({name: values[index] for name, values in whole.items()}),
            "seconds": None, "rows_per_second": None,
        }
        for index, epoch in enumerate(epochs)
    ]  # fmt: skip
