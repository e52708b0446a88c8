"""Renders a report as one HTML page, without scripts or external resources."""

import time
from collections.abc import Iterator, Sequence
from html import escape
from itertools import islice

from ....errors import WorkerFailure
from ....formatting import mebibytes, position_text
from ...specs import WorkerReport
from ..record import RunRecord
from ..tracebacks import shown_traceback
from .advice import advice_for
from .curves import charts_of
from .text import attempt_line, headline
from .timeline import legend, timeline

_MAX_CHARTS = 24
_MAX_WORKERS = 64
# The root cause, which comes first, usually explains the others.
_MAX_FAILURES = 8
_MAX_TAILS = 8

_STYLE = """
.stfd{font:14px/1.45 system-ui,sans-serif;color:#222;background:#fff;padding:12px 16px;max-width:1220px}
.stfd h2{font-size:17px;margin:0 0 4px}.stfd h3{font-size:14px;margin:18px 0 6px;border-bottom:1px solid #ddd}
.stfd table{border-collapse:collapse;font-size:12px;background:#fff;margin:0}
.stfd table th,.stfd table td{text-align:left;padding:2px 10px 2px 0;border:0;color:#222;background:#fff}
.stfd table th,.stfd table td{white-space:nowrap}
.stfd table th{color:#666;font-weight:normal}.stfd table td.n{text-align:right;font-variant-numeric:tabular-nums}
.stfd pre{font-size:11.5px;line-height:1.35;background:#f6f6f6;color:#222;padding:8px;margin:4px 0}
.stfd pre{overflow:auto;max-height:340px}
.stfd .charts{display:flex;flex-wrap:wrap;gap:8px 16px}.stfd summary{cursor:pointer}
.stfd .state{padding:1px 8px;border-radius:9px;color:#fff;font-size:12px;vertical-align:1px}
.stfd .dim{color:#666}.stfd ul{margin:4px 0;padding-left:20px}
"""
_STATES = {
    "succeeded": "#1b7f3b",
    "failed": "#b3261e",
    "interrupted": "#8a5a00",
    "cancelled": "#8a5a00",
    "running": "#0b57d0",
}


def whole_page(report: RunRecord) -> str:
    """Return a complete HTML document."""
    title = escape(f"{report.function or 'run'}: {headline(report)}")
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width"></head>'
        f'<body style="margin:0;background:#fff">{fragment(report)}</body></html>\n'
    )


def fragment(report: RunRecord) -> str:
    """Return the report as an HTML element, for a notebook or a page."""
    return f'<div class="stfd"><style>{_STYLE}</style>{"".join(_sections(report))}</div>'


def _sections(report: RunRecord) -> Iterator[str]:
    yield from _head(report)
    charts = list(charts_of(report.history))
    if charts:
        drawn = "".join(chart.svg() for chart in islice(charts, _MAX_CHARTS))
        yield f'<h3>Metrics</h3><div class="charts">{drawn}</div>'
        if len(charts) > _MAX_CHARTS:
            yield f'<div class="dim">{len(charts) - _MAX_CHARTS} more charts are not shown.</div>'
    if report.attempts:
        yield f'<h3>Timeline</h3><div class="dim">{legend()}</div>{timeline(report)}'
    if report.workers:
        yield f"<h3>Workers{' of the last attempt' if len(report.attempts) > 1 else ''}</h3>"
        yield _workers(list(report.workers.values()))
    yield from _failures(report)
    yield from _warnings(report)
    yield from _last_lines(report)
    yield from _settings(report)


def _head(report: RunRecord) -> Iterator[str]:
    color = _STATES[report.status]
    state = f'<span class="state" style="background:{color}">{report.status}</span>'
    yield f"<h2>{escape(report.function or 'Run')} {state}</h2>"
    yield f"<div>{escape(headline(report))}</div>"
    if report.started_at:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(report.started_at))
        versions = sorted({worker.tensorflow for worker in report.workers.values() if worker.tensorflow})
        software = f", TensorFlow {escape(', '.join(versions))}" if versions else ""
        yield f'<div class="dim">started {when}{software}</div>'
    if report.error:
        yield f'<div style="color:{_STATES["failed"]}">{escape(report.error)}</div>'
    advice = advice_for(report)
    if advice:
        yield f"<h3>What limits this run</h3><ul>{''.join(f'<li>{escape(text)}</li>' for text in advice)}</ul>"


def _workers(workers: Sequence[WorkerReport]) -> str:
    has_rows = any(worker.rows for worker in workers)
    most = max(worker.peak_rss for worker in workers) or 1
    names = ["rank", "host", "devices", "threads", *(["rows"] if has_rows else []), "train s", "peak memory", "exit"]
    rows = ["<tr>" + "".join(f"<th>{name}</th>" for name in names) + "</tr>"]
    for worker in workers[:_MAX_WORKERS]:
        width = round(80 * worker.peak_rss / most)
        memory = (
            f'<svg width="82" height="9"><rect width="{width}" height="9" fill="#9bb8d3"/></svg> '
            f"{mebibytes(worker.peak_rss) if worker.peak_rss else '-'}"
        )
        cells = [
            f'<td class="n">{worker.rank}</td><td>{escape(worker.host)}</td>',
            f'<td>{escape(", ".join(worker.devices) or "-")}</td><td class="n">{worker.threads}</td>',
            f'<td class="n">{sum(worker.rows.values()):,}</td>' if has_rows else "",
            f'<td class="n">{worker.seconds.get("train", 0.0):.1f}</td><td>{memory}</td><td>{escape(worker.exit)}</td>',
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    more = len(workers) - _MAX_WORKERS
    note = f'<div class="dim">and {more} more workers</div>' if more > 0 else ""
    return f"<table>{''.join(rows)}</table>{note}"


def _failures(report: RunRecord) -> Iterator[str]:
    if not any(attempt.failures for attempt in report.attempts):
        return
    yield "<h3>Failures</h3>"
    for attempt in report.attempts:
        if not attempt.failures:
            continue
        yield f"<div>{escape(attempt_line(report, attempt))}</div>"
        failures = sorted(attempt.failures.values(), key=lambda failure: failure.rank != attempt.root_cause)
        for failure in failures[:_MAX_FAILURES]:
            yield _failure(failure, is_cause=failure.rank == attempt.root_cause)
        if len(failures) > _MAX_FAILURES:
            yield f'<div class="dim">and {len(failures) - _MAX_FAILURES} more ranks</div>'


def _failure(failure: WorkerFailure, *, is_cause: bool) -> str:
    where = f" in {position_text(failure.place)}" if failure.place else ""
    head = escape(f"rank {failure.rank} @ {failure.host}, {failure.kind} after {failure.seconds:.1f} s{where}")
    cause = " <b>root cause</b>" if is_cause else ""
    shown = shown_traceback(failure.traceback, failure.message)
    text = escape("\n\n".join(part for part in (failure.message, shown) if part))
    return f"<details{' open' if is_cause else ''}><summary>{head}{cause}</summary><pre>{text}</pre></details>"


def _warnings(report: RunRecord) -> Iterator[str]:
    texts = dict.fromkeys(text for worker in report.workers.values() for text in worker.warnings)
    if texts:
        yield f"<h3>Warnings</h3><ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def _last_lines(report: RunRecord) -> Iterator[str]:
    tails = [worker for worker in report.workers.values() if worker.log_tail]
    if not tails:
        return
    yield "<h3>Last lines of output</h3>"
    for worker in tails[:_MAX_TAILS]:
        text = escape("\n".join(worker.log_tail))
        summary = escape(f"rank {worker.rank} @ {worker.host}")
        yield f"<details><summary>{summary}</summary><pre>{text}</pre></details>"


def _settings(report: RunRecord) -> Iterator[str]:
    for title, values in (("Arguments", report.arguments), ("Settings", report.settings)):
        if values:
            rows = "".join(
                f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in values.items()
            )
            yield f"<h3>{title}</h3><table>{rows}</table>"
