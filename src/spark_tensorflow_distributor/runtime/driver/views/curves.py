"""Makes the charts of a report: loss, metrics and throughput over the epochs."""

from collections.abc import Iterator, Sequence

from ..history import HistoryEntry
from .svg import Chart, Point, Series

_TRAINING, _VALIDATION, _SPEED = "#0072b2", "#d55e00", "#009e73"
_VALIDATION_PREFIX = "val_"


def charts_of(history: Sequence[HistoryEntry]) -> Iterator[Chart]:
    """Yield a chart for each metric of each ``fit``, with its value on validation data, and one for the throughput."""
    fits = list(dict.fromkeys(entry["fit"] for entry in history))
    calls = [fit for fit in fits if fit is not None]
    for fit in fits:
        entries = [entry for entry in history if entry["fit"] == fit]
        suffix = f" (fit {fit + 1})" if fit is not None and len(calls) > 1 else ""
        yield from _metrics(entries, suffix, "step" if fit is None else "epoch")
        yield from _throughput(entries, suffix)


def _metrics(entries: Sequence[HistoryEntry], suffix: str, x_name: str) -> Iterator[Chart]:
    names = dict.fromkeys(name for entry in entries for name in entry["logs"])
    marks = _attempts(entries)
    for name in names:
        base = name.removeprefix(_VALIDATION_PREFIX)
        if name != base and base in names:
            continue  # drawn with the metric itself
        series = [Series("training" if name == base else "validation", _values(entries, name), _TRAINING)]
        if name == base and _VALIDATION_PREFIX + name in names:
            points = _values(entries, _VALIDATION_PREFIX + name)
            series.append(Series("validation", points, _VALIDATION, dashed=True))
        yield Chart(name + suffix, x_name, series, marks)


def _throughput(entries: Sequence[HistoryEntry], suffix: str) -> Iterator[Chart]:
    points = [(_x(entry), float(speed)) for entry in entries if (speed := entry.get("rows_per_second")) is not None]
    if points:
        series = [Series("rows per second", points, _SPEED)]
        yield Chart(f"rows per second{suffix}", "epoch", series, _attempts(entries), from_zero=True)


def _values(entries: Sequence[HistoryEntry], name: str) -> list[Point]:
    return [(_x(entry), entry["logs"][name]) for entry in entries if name in entry["logs"]]


def _x(entry: HistoryEntry) -> float:
    """Return where an entry is drawn: epochs count from 1, steps as the program counts them."""
    return float(entry["epoch"] if entry["fit"] is None else entry["epoch"] + 1)


def _attempts(entries: Sequence[HistoryEntry]) -> list[tuple[float, str]]:
    """Return where attempts after the first one begin."""
    marks, before = [], entries[0]["attempt"] if entries else None
    for entry in entries:
        if entry["attempt"] not in (before, None):
            marks.append((_x(entry), f"attempt {entry['attempt'] + 1}"))
        before = entry["attempt"]
    return marks
