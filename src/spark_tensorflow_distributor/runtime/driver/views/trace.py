"""Writes a report as a trace in Chrome's format, which Perfetto opens."""

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ....formatting import first_line
from ..record import AttemptReport, RunRecord
from .timeline import phases_of

# Threads of a rank's process in the trace.
_PHASES, _STEPS, _INSIDE = 1, 2, 3


def write_trace(report: RunRecord, path: str | os.PathLike[str]) -> None:
    """Write the trace of a run as JSON, compressed if the path ends in ``.gz``."""
    text = json.dumps({"traceEvents": events_of(report), "displayTimeUnit": "ms"}, allow_nan=False)
    data = text.encode()
    Path(path).write_bytes(gzip.compress(data) if os.fspath(path).endswith(".gz") else data)


def events_of(report: RunRecord) -> list[dict[str, Any]]:
    """Return the events; times are in microseconds since the run started.

    Slices of one thread are cut so that they do not overlap, and times are shifted so that none is negative: Perfetto
    drops other events, and a host's clock may be behind the driver's.
    """
    events = list(_events(report))
    timed = [event for event in events if "ts" in event]
    earliest = min((event["ts"] for event in timed), default=0)
    ends: dict[tuple[int, int], int] = {}
    for event in timed:
        event["ts"] -= min(0, earliest)
        if event["ph"] == "X":
            thread = event["pid"], event["tid"]
            end = event["ts"] + event["dur"]
            event["ts"] = max(event["ts"], ends.get(thread, 0))
            event["dur"] = max(0, end - event["ts"])
            ends[thread] = event["ts"] + event["dur"]
    return events


def _events(report: RunRecord) -> Iterator[dict[str, Any]]:
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
    start = round(began * 1e6)
    dur = max(0, round((began + seconds) * 1e6) - start)
    event = {"ph": "X", "pid": rank, "tid": thread, "name": name, "ts": start, "dur": dur}
    return {**event, "args": args} if args else event


def _phases(attempt: AttemptReport, rank: int) -> Iterator[dict[str, Any]]:
    for phase in phases_of(attempt, rank):
        yield _slice(rank, _PHASES, phase.name, phase.began, phase.seconds, attempt=attempt.attempt)


def _steps(report: RunRecord, attempt: AttemptReport, rank: int) -> Iterator[dict[str, Any]]:
    worker = attempt.workers.get(rank)
    for number, began_at, seconds, reading, collectives in () if worker is None else worker.steps:
        began = began_at - report.started_at
        own = max(0.0, seconds - reading - collectives)
        # Drawn in this order, although collectives and the worker's own computation alternate within a step.
        parts = {"waiting for rows": reading, "computing": own, "collectives": collectives}
        if worker is not None and "collectives" not in worker.times:
            parts = {"waiting for rows": reading, "computing and collectives": own}
        details = {f"{name.replace(' ', '_')}_ms": 1e3 * part for name, part in parts.items()}
        yield _slice(rank, _STEPS, f"step {number:.0f}", began, seconds, **details)
        for name, part in parts.items():
            yield _slice(rank, _INSIDE, name, began, part)
            began += part


def _failure(attempt: AttemptReport, rank: int) -> Iterator[dict[str, Any]]:
    failure = attempt.failures.get(rank)
    if failure is not None:
        at = attempt.began + min(failure.seconds, attempt.seconds)
        name = f"{failure.kind}: {first_line(failure.message)}"
        yield {"ph": "i", "s": "p", "pid": rank, "tid": _PHASES, "name": name, "ts": round(at * 1e6)}
