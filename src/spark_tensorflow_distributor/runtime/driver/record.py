"""Records what is known about a run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ...errors import WorkerFailure
from ..specs import WorkerReport
from .history import HistoryEntry


@dataclass
class AttemptReport:
    """One launch of the group.

    Attributes:
        attempt: 0 for the first.
        seconds: Duration from submission to the end of the Spark job.
        workers: Reports by rank; a rank that Spark lost has none.
        failures: Failures by rank.
        root_cause: The rank whose failure caused the others, or None.
        checkpoints: Names of the checkpoints that were saved.
        resumed: The positions at which training resumed: ``fit``, ``epoch`` and ``step``, counted from 0, and
            ``complete``, which says whether this ``fit`` had ended.
        began: When it was submitted, in seconds since the run started.
    """

    attempt: int
    seconds: float = 0.0
    workers: dict[int, WorkerReport] = field(default_factory=dict)
    failures: dict[int, WorkerFailure] = field(default_factory=dict)
    root_cause: int | None = None
    checkpoints: tuple[str, ...] = ()
    resumed: tuple[dict[str, int], ...] = ()
    began: float = 0.0


@dataclass
class RunRecord:
    """What is known about a run; :class:`~.report.RunReport` shows it.

    Attributes:
        num_slots: The runner's argument.
        num_tasks: Number of Spark tasks that ran it.
        seconds: Duration of the whole run.
        succeeded: Whether it returned a value.
        status: ``"running"``, ``"succeeded"``, ``"failed"``, ``"interrupted"`` or ``"cancelled"``.
        error: The exception in one line if it did not succeed, else "".
        stopped_by: What ended training early, such as a callback's class; "" if nothing did.
        function: Name of the training function, or of the script.
        arguments: Its arguments by name: values that JSON can represent, shortened if they are long; the names of the
            types of others; and ``"..."`` for possible secrets.
        vitals: While workers train: the last known ``state``, ``cpu`` (seconds) and ``rss`` (bytes) of each trainer's
            process, by rank.
        settings: The runner's arguments that differ from their defaults, in the form of ``arguments``.
        attempts: Every launch, in order.
        dropped_lines: Log lines of the workers that were dropped because the driver could not print them fast enough.
        history: Every epoch of every ``fit``, and every call of ``get_context().report`` (of many thousands of calls,
            only every second, fourth, ...), in order: a list of dicts with ``fit``, ``epoch``, ``logs``, ``seconds``,
            ``rows_per_second`` and ``attempt`` (see :class:`HistoryEntry`). It grows during the run.
        started_at: When the run started, in seconds since the epoch.
    """

    num_slots: int
    num_tasks: int
    seconds: float = 0.0
    succeeded: bool = False
    attempts: list[AttemptReport] = field(default_factory=list)
    dropped_lines: int = 0
    history: list[HistoryEntry] = field(default_factory=list)
    status: str = "running"
    error: str = ""
    stopped_by: str = ""
    function: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    vitals: dict[int, dict[str, Any]] = field(default_factory=dict)
    started_at: float = 0.0

    @property
    def interrupted(self) -> bool:
        """Whether the run was ended by Ctrl-C, a notebook's stop button or another signal to the driver."""
        return self.status == "interrupted"

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the last epoch by name; empty before the first one has ended."""
        return dict(self.history[-1]["logs"]) if self.history else {}

    def to_pandas(self) -> Any:
        """Return the history as a pandas DataFrame: one row per entry, and one column for each metric.

        The other columns are ``fit``, ``epoch``, ``seconds``, ``rows_per_second`` and ``attempt``; a metric with one of
        these names gets the suffix ``_metric``.

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas as pd

        rows = []
        for entry in self.history:
            facts = {name: value for name, value in entry.items() if name != "logs"}
            logs = {f"{name}_metric" if name in facts else name: value for name, value in entry["logs"].items()}
            rows.append({**facts, **logs})
        frame = pd.DataFrame(rows, columns=None if rows else ["fit", "epoch", "seconds", "rows_per_second", "attempt"])
        return frame.astype({"fit": "Int64", "attempt": "Int64"})  # both may be missing

    @property
    def workers(self) -> Mapping[int, WorkerReport]:
        """The last attempt's workers, by rank."""
        return self.attempts[-1].workers if self.attempts else {}

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, ready for JSON; exceptions become strings."""
        data = asdict(self)
        for attempt in data["attempts"]:
            for failure in attempt["failures"].values():
                failure["exception"] = None if failure["exception"] is None else repr(failure["exception"])
        return data
