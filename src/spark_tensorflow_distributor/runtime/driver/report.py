"""The report of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...errors import WorkerFailure
from ...formatting import mebibytes
from ..specs import WorkerReport

__all__ = ["AttemptReport", "RunReport", "WorkerReport"]


@dataclass
class AttemptReport:
    """One launch of the group.

    Attributes:
        attempt: 0 for the first.
        seconds: From submission to the end of the Spark job.
        workers: Reports by rank; a rank that Spark lost has none.
        failures: Failures by rank.
        root_cause: The rank whose failure caused the others, or None.
        checkpoints: Names of the checkpoints that were saved.
        resumed: The positions at which training resumed: ``fit``, ``epoch`` and ``step``, counted from 0.
    """

    attempt: int
    seconds: float = 0.0
    workers: dict[int, WorkerReport] = field(default_factory=dict)
    failures: dict[int, WorkerFailure] = field(default_factory=dict)
    root_cause: int | None = None
    checkpoints: tuple[str, ...] = ()
    resumed: tuple[dict[str, int], ...] = ()


@dataclass
class RunReport:
    """The report of a run.

    Attributes:
        num_slots: The runner's argument.
        num_tasks: Number of Spark tasks that ran it.
        seconds: Duration of the whole run.
        succeeded: Whether it returned a value.
        attempts: Every launch, in order.
        dropped_lines: Log lines of the workers that were dropped because the driver could not print them fast enough.
    """

    num_slots: int
    num_tasks: int
    seconds: float = 0.0
    succeeded: bool = False
    attempts: list[AttemptReport] = field(default_factory=list)
    dropped_lines: int = 0

    @property
    def workers(self) -> Mapping[int, WorkerReport]:
        """The last attempt's workers, by rank."""
        return self.attempts[-1].workers if self.attempts else {}

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, ready for JSON; exceptions become text."""
        data = asdict(self)
        for attempt in data["attempts"]:
            for failure in attempt["failures"].values():
                failure["exception"] = None if failure["exception"] is None else repr(failure["exception"])
        return data

    def __str__(self) -> str:
        state = "succeeded" if self.succeeded else "failed"
        head = f"Run {state} after {self.seconds:.1f} s, {len(self.attempts)} attempt(s), {self.num_tasks} worker(s)"
        # Only a run with DataFrames has a column for them.
        phases = [name for name in _PHASES if name != "data" or any(w.rows for w in self.workers.values())]
        rows = [_header(phases), *(_row(worker, phases) for _, worker in sorted(self.workers.items()))]
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        if self.dropped_lines:
            lines.append(
                f"{self.dropped_lines} log lines were dropped: they arrived faster than they could be printed."
            )
        return "\n".join([head, *lines])


_PHASES = ("start", "meet", "import", "strategy", "data", "train", "result")


def _header(phases: Sequence[str]) -> tuple[str, ...]:
    data = ("rows",) if "data" in phases else ()
    return ("rank", "host", "devices", "threads", *data, *(f"{name} s" for name in phases), "peak RSS", "exit")


def _row(worker: WorkerReport, phases: Sequence[str]) -> tuple[str, ...]:
    times = (f"{worker.seconds[name]:.2f}" if name in worker.seconds else "-" for name in phases)
    rss = mebibytes(worker.peak_rss) if worker.peak_rss else "-"
    data = (f"{sum(worker.rows.values()):,}",) if "data" in phases else ()
    devices = ",".join(worker.devices) or "-"
    return (str(worker.rank), worker.host, devices, str(worker.threads), *data, *times, rss, worker.exit)
