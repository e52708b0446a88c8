"""The report as a trace in Chrome's format, which Perfetto opens."""

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..record import AttemptReport, RunRecord
from .text import first_line
from .timeline import phases_of

# Threads of a rank's process in the trace.
_PHASES, _STEPS, _INSIDE = 1, 2, 3


def write_trace(report: RunRecord, path: str | os.PathLike[str]) -> None:
    """Write the trace of a run as JSON, compressed if the path ends in ``.gz``."""
    text = json.dumps({"traceEvents": list(events_of(report)), "displayTimeUnit": "ms"})
    data = text.encode()
    Path(path).write_bytes(gzip.compress(data) if os.fspath(path).endswith(".gz") else data)


def events_of(report: RunRecord) -> Iterator[dict[str, Any]]:
    """Yield the events; times are in microseconds since the run started."""
    named: set[int] = set()
    for attempt in report.attempts:
        for rank in sorted(attempt.workers.keys() | attempt.failures.keys()):
            if rank not in named:
                named.add(rank)
                yield from _names(attempt, rank)
            yield from _phases(attempt, rank)
            yield from _steps(report, attempt, rank)
            yield from _failure(attempt, rank)


def _names(attempt: AttemptReport, rank: int) -> Iterator[dict[str, Any]]:
    source = attempt.workers.get(rank) or attempt.failures[rank]
    yield {"ph": "M", "pid": rank, "name": "process_name", "args": {"name": f"rank {rank} @ {source.host}"}}
    yield {"ph": "M", "pid": rank, "name": "process_sort_index", "args": {"sort_index": rank}}
    for thread, name in ((_PHASES, "phases"), (_STEPS, "steps"), (_INSIDE, "inside the steps")):
        yield {"ph": "M", "pid": rank, "tid": thread, "name": "thread_name", "args": {"name": name}}


def _slice(rank: int, thread: int, name: str, began: float, seconds: float, **args: Any) -> dict[str, Any]:
    event = {"ph": "X", "pid": rank, "tid": thread, "name": name, "ts": round(began * 1e6), "dur": round(seconds * 1e6)}
    return {**event, "args": args} if args else event


def _phases(attempt: AttemptReport, rank: int) -> Iterator[dict[str, Any]]:
    for phase in phases_of(attempt, rank):
        yield _slice(rank, _PHASES, phase.name, phase.began, phase.seconds, attempt=attempt.attempt)


def _steps(report: RunRecord, attempt: AttemptReport, rank: int) -> Iterator[dict[str, Any]]:
    worker = attempt.workers.get(rank)
    for number, began_at, seconds, reading, collectives in () if worker is None else worker.steps:
        began = began_at - report.started_at
        own = max(0.0, seconds - reading - collectives)
        yield _slice(
            rank, _STEPS, f"step {number:.0f}", began, seconds,
            waiting_for_rows_ms=1e3 * reading, collectives_ms=1e3 * collectives, own_ms=1e3 * own,
        )  # fmt: skip
        # The parts in one order: collectives and the worker's own computation alternate within a step.
        yield _slice(rank, _INSIDE, "waiting for rows", began, reading)
        yield _slice(rank, _INSIDE, "computing", began + reading, own)
        yield _slice(rank, _INSIDE, "collectives", began + reading + own, collectives)


def _failure(attempt: AttemptReport, rank: int) -> Iterator[dict[str, Any]]:
    failure = attempt.failures.get(rank)
    if failure is not None:
        at = attempt.began + min(failure.seconds, attempt.seconds)
        name = f"{failure.kind}: {first_line(failure.message)}"
        yield {"ph": "i", "s": "p", "pid": rank, "tid": _PHASES, "name": name, "ts": round(at * 1e6)}
