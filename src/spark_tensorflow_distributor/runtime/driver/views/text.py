"""Renders a report as text."""

from collections.abc import Iterator, Mapping, Sequence

from ....formatting import first_line, mebibytes, position_text, rank_list
from ...specs import WorkerReport
from ..history import HistoryEntry
from ..record import AttemptReport, RunRecord

PHASES = ("start", "meet", "import", "strategy", "data", "train", "result")


def headline(report: RunRecord) -> str:
    """Return the run in one line."""
    parts = [f"{report.status} after {report.seconds:.1f} s" if report.status != "running" else "running"]
    if len(report.attempts) > 1:
        parts.append(f"{len(report.attempts)} attempts")
    parts.append(f"{report.num_tasks} worker{'s' if report.num_tasks != 1 else ''}")
    if report.metrics:
        parts.append(numbers(report.metrics))
    if report.stopped_by:
        parts.append(f"stopped early by {report.stopped_by}")
    return ", ".join(parts)


def table(report: RunRecord) -> str:
    """Return the report as several lines: how the run ended, its attempts, and a table of the last one's workers."""
    after = "" if report.status == "running" else f" after {report.seconds:.1f} s"
    counts = f"{len(report.attempts)} attempt(s), {report.num_tasks} worker(s)"
    lines = [f"Run {_STATES[report.status]}{after}, {counts}"]
    if len(report.attempts) > 1 or report.status == "failed":
        lines += [attempt_line(report, attempt) for attempt in report.attempts]
    # Only a run with DataFrames has a column for them.
    phases = [name for name in PHASES if name != "data" or any(w.rows for w in report.workers.values())]
    if report.workers:
        rows = [_header(phases), *(_row(worker, phases) for _, worker in sorted(report.workers.items()))]
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
    if report.history:
        lines.append(_last_entry(report.history[-1]))
    if report.dropped_lines:
        lines.append(f"{report.dropped_lines} log lines were dropped: they arrived faster than they could be printed.")
    return "\n".join(lines)


def attempt_line(report: RunRecord, attempt: AttemptReport) -> str:
    """Return how an attempt began and ended."""
    number = report.attempts.index(attempt) + 1
    parts = [
        f"restored fit {position['fit'] + 1}, which was complete"
        if position.get("complete")
        else f"resumed at {position_text(position)}"
        for position in attempt.resumed
    ]
    parts += list(_ends(report, attempt))
    return f"Attempt {number}, {attempt.seconds:.1f} s: {'; '.join(parts)}"


def _ends(report: RunRecord, attempt: AttemptReport) -> Iterator[str]:
    cause = None if attempt.root_cause is None else attempt.failures.get(attempt.root_cause)
    if cause is not None:
        where = f" in {position_text(cause.place)}" if cause.place else ""
        yield f"rank {cause.rank} @ {cause.host} {_KINDS.get(cause.kind, 'failed')}{where}: {first_line(cause.message)}"
    elif attempt.failures:
        yield f"{rank_list(sorted(attempt.failures))} failed"
    elif attempt is report.attempts[-1] and report.status != "running":
        yield report.status
    else:
        yield "ended"


_STATES = {
    "running": "in progress",
    "succeeded": "succeeded",
    "failed": "failed",
    "interrupted": "was interrupted",
    "cancelled": "was cancelled",
}

# The kinds of WorkerFailure in words; others "failed".
_KINDS = {"lost": "was lost", "signal": "was killed", "stalled": "stalled", "exit": "exited"}


def numbers(logs: Mapping[str, float]) -> str:
    """Return metrics as ``"loss=0.25, accuracy=0.9"``."""
    return ", ".join(f"{name}={value:.4g}" for name, value in logs.items())


def _last_entry(entry: HistoryEntry) -> str:
    if entry["fit"] is None:
        return f"Last reported step {entry['epoch']}: {numbers(entry['logs'])}"
    return f"Last epoch: fit {entry['fit'] + 1}, epoch {entry['epoch'] + 1}: {numbers(entry['logs'])}"


def _header(phases: Sequence[str]) -> tuple[str, ...]:
    data = ("rows",) if "data" in phases else ()
    return ("rank", "host", "devices", "threads", *data, *(f"{name} s" for name in phases), "peak RSS", "exit")


def _row(worker: WorkerReport, phases: Sequence[str]) -> tuple[str, ...]:
    times = (f"{worker.seconds[name]:.2f}" if name in worker.seconds else "-" for name in phases)
    rss = mebibytes(worker.peak_rss) if worker.peak_rss else "-"
    data = (f"{sum(worker.rows.values()):,}",) if "data" in phases else ()
    devices = ",".join(worker.devices) or "-"
    return (str(worker.rank), worker.host, devices, str(worker.threads), *data, *times, rss, worker.exit)
