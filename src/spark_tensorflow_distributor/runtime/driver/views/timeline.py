"""Draws the timeline of a report: the phases of every rank in every attempt."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape

from ....errors import WorkerFailure
from ....formatting import first_line
from ..record import AttemptReport, RunRecord
from .svg import short, ticks
from .text import PHASES, attempt_line

COLORS = {
    "start": "#c9c9c9",
    "meet": "#999999",
    "import": "#e69f00",
    "strategy": "#f0e442",
    "data": "#56b4e9",
    "train": "#009e73",
    "result": "#cc79a7",
}
_FAILED = "#c00000"
# Show no more ranks than this, except that ranks that failed are added.
_MAX_RANKS = 32
_WIDTH, _LEFT, _ROW, _GAP, _AXIS = 800, 120, 17, 24, 22


@dataclass(frozen=True)
class Phase:
    """A phase of a rank; times in seconds since the run started."""

    name: str
    began: float
    seconds: float


def phases_of(attempt: AttemptReport, rank: int) -> list[Phase]:
    """Return the phases of a rank in the order in which they happened; empty if it sent no report."""
    worker = attempt.workers.get(rank)
    at, phases = attempt.began, []
    seconds: Mapping[str, float] = {} if worker is None else worker.seconds
    for name in PHASES:
        if name in seconds:
            phases.append(Phase(name, at, seconds[name]))
            at += seconds[name]
    return phases


def timeline(report: RunRecord) -> str:
    """Return the timeline as an SVG element; empty before the first attempt has ended."""
    if not report.attempts:
        return ""
    longest = max([report.seconds, *(attempt.began + attempt.seconds for attempt in report.attempts)]) or 1.0
    scale = (_WIDTH - _LEFT - 10) / longest
    parts, y = [], 4
    for attempt in report.attempts:
        parts.append(f'<text x="0" y="{y + 14}" font-weight="bold" fill="#222">')
        parts.append(f"{escape(first_line(attempt_line(report, attempt), 130))}</text>")
        y += _GAP
        ranks, left_out = _shown(attempt, report.num_tasks)
        for rank in ranks:
            parts += _row(attempt, rank, y, scale)
            y += _ROW
        if left_out:
            parts.append(f'<text x="0" y="{y + 12}" fill="#555">and {left_out} other ranks</text>')
            y += _ROW
        y += 6
    for tick in ticks(0, longest):
        x = _LEFT + tick * scale
        parts.append(f'<text x="{x:.1f}" y="{y + 12}" text-anchor="middle" fill="#555">{short(tick)} s</text>')
    height = y + _AXIS
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="100%" style="max-width:'
        f'{_WIDTH}px" role="img" aria-label="Timeline" font-family="sans-serif" font-size="11">{"".join(parts)}</svg>'
    )


def _shown(attempt: AttemptReport, num_tasks: int) -> tuple[list[int], int]:
    known = sorted(attempt.workers.keys() | attempt.failures.keys()) or list(range(num_tasks))
    shown = set(known[:_MAX_RANKS]) | {
        rank for rank, f in attempt.failures.items() if f.kind not in ("stopped", "peer")
    }
    shown = set(sorted(shown)[: 2 * _MAX_RANKS]) | {rank for rank in known if rank == attempt.root_cause}
    return sorted(shown), len(known) - len(shown)


def _row(attempt: AttemptReport, rank: int, y: int, scale: float) -> Iterator[str]:
    worker, failure = attempt.workers.get(rank), attempt.failures.get(rank)
    host = worker.host if worker is not None else "?" if failure is None else failure.host
    yield f'<text x="0" y="{y + 12}" fill="#333">{escape(first_line(f"{rank} @ {host}", 18))}</text>'
    phases = phases_of(attempt, rank)
    for phase in phases:
        x, width = _LEFT + phase.began * scale, max(phase.seconds * scale, 0.5)
        yield (
            f'<rect x="{x:.1f}" y="{y + 1}" width="{width:.1f}" height="{_ROW - 4}" fill="{COLORS[phase.name]}">'
            f"<title>{phase.name}: {phase.seconds:.2f} s</title></rect>"
        )
    if not phases:
        x, width = _LEFT + attempt.began * scale, max(attempt.seconds * scale, 1.0)
        yield (
            f'<rect x="{x:.1f}" y="{y + 1}" width="{width:.1f}" height="{_ROW - 4}" fill="none" stroke="#aaa" '
            'stroke-dasharray="3 2"><title>no report</title></rect>'
        )
    if failure is not None:
        yield _failure_mark(attempt, failure, y, scale, is_cause=rank == attempt.root_cause)


def _failure_mark(attempt: AttemptReport, failure: WorkerFailure, y: int, scale: float, *, is_cause: bool) -> str:
    x = _LEFT + (attempt.began + min(failure.seconds, attempt.seconds)) * scale
    color = _FAILED if is_cause else "#e08080"
    tip = escape(f"{failure.kind}: {first_line(failure.message)}")
    return (
        f'<path d="M{x - 4:.1f},{y + 3} l8,8 m0,-8 l-8,8" stroke="{color}" stroke-width="2.5" fill="none">'
        f"<title>{tip}</title></path>"
    )


def legend() -> str:
    """Return what the colours mean, as HTML."""
    return " ".join(
        f'<span style="white-space:nowrap"><span style="display:inline-block;width:10px;height:10px;'
        f'background:{color}"></span> {name}</span>&ensp;'
        for name, color in COLORS.items()
    )
