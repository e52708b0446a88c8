"""The history of a run: the metrics of every epoch, over all attempts."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

_log = logging.getLogger(__name__)

# Limit on the number of entries from get_context().report.
MAX_REPORTED = 20_000


class HistoryEntry(TypedDict):
    """One epoch of one ``fit``, or one call of ``get_context().report``.

    Attributes:
        fit: Number of the call of ``fit``, from 0; None for ``get_context().report``.
        epoch: Number of the epoch, from 0; for ``get_context().report``, its ``step``.
        logs: The metrics by name.
        seconds: Duration of the epoch with its evaluation, or time since the previous report; None if unknown.
        rows_per_second: Rows trained per second by all workers together, without the evaluation; None if unknown.
        attempt: The attempt that trained it; None if it was restored from a checkpoint of an earlier run.
    """

    fit: int | None
    epoch: int
    logs: dict[str, float]
    seconds: float | None
    rows_per_second: float | None
    attempt: int | None


class AttemptHistory:
    """Adds the epochs of one attempt to the history of the run.

    An attempt that resumes trains some epochs again; they replace those of earlier attempts.

    Args:
        history: The history of the run; changed in place.
        attempt: Number of the attempt.
    """

    def __init__(self, history: list[HistoryEntry], attempt: int) -> None:
        self._history, self._attempt = history, attempt
        self._next = 0
        self._kinds: set[bool] = set()

    def take(self, message: Mapping[str, Any]) -> list[HistoryEntry]:
        """Add the entries of a message, unless they were added before; return the new ones.

        Entries that were restored from a checkpoint only fill gaps, and are not among the returned ones.
        """
        number = int(message["number"])
        if number < self._next:
            return []
        if number > self._next:
            _log.warning("The history lacks entries: the driver was unreachable for too long.")
        self._next = number + 1
        entries = [_entry(each, None if message.get("restored") else self._attempt) for each in message["entries"]]
        if message.get("restored"):
            self._fill_gaps(entries)
            return []
        for entry in entries:
            self._supersede(entry)
            self._history.append(entry)
        if len(self._history) > MAX_REPORTED:
            self._limit()
        return entries

    def _supersede(self, entry: HistoryEntry) -> None:
        """Before the attempt's first epoch is added, drop the epochs that the attempt trains again."""
        is_fit = entry["fit"] is not None
        if is_fit in self._kinds:
            return
        self._kinds.add(is_fit)
        self._history[:] = [
            each
            for each in self._history
            if each["attempt"] == self._attempt or (each["fit"] is not None) != is_fit or _key(each) < _key(entry)
        ]

    def _fill_gaps(self, entries: Sequence[HistoryEntry]) -> None:
        known = {_key(each) for each in self._history if each["fit"] is not None}
        missing = [entry for entry in entries if _key(entry) not in known]
        for entry in missing:
            later = (i for i, each in enumerate(self._history) if each["fit"] is not None and _key(each) > _key(entry))
            self._history.insert(next(later, len(self._history)), entry)

    def _limit(self) -> None:
        """Drop every second reported entry if there are too many."""
        reported = [index for index, entry in enumerate(self._history) if entry["fit"] is None]
        if len(reported) > MAX_REPORTED:
            dropped = set(reported[-2::-2])
            self._history[:] = [entry for index, entry in enumerate(self._history) if index not in dropped]


def _entry(sent: Mapping[str, Any], attempt: int | None) -> HistoryEntry:
    return HistoryEntry(
        fit=sent["fit"],
        epoch=sent["epoch"],
        logs=dict(sent["logs"]),
        seconds=sent["seconds"],
        rows_per_second=sent.get("rows_per_second"),
        attempt=attempt,
    )


def _key(entry: HistoryEntry) -> tuple[int, int]:
    return -1 if entry["fit"] is None else entry["fit"], entry["epoch"]
