"""RunReport: the record of a run, with several ways to view it."""

import os
from pathlib import Path
from typing import Any

from ...formatting import printable
from ..specs import WorkerReport
from .history import HistoryEntry
from .record import AttemptReport, RunRecord
from .views.advice import advice_for
from .views.page import fragment, whole_page
from .views.text import headline, table
from .views.trace import write_trace

__all__ = ["AttemptReport", "HistoryEntry", "RunReport", "WorkerReport"]


class RunReport(RunRecord):
    """The report of a run.

    It is shown as a table when printed, and in a notebook as a page, which :meth:`to_html` saves. It is updated during
    the run. For its attributes, see :class:`~.record.RunRecord`.
    """

    @property
    def advice(self) -> list[str]:
        """What limits the run, in sentences with the numbers behind them; empty if nothing stands out."""
        return advice_for(self)

    def headline(self) -> str:
        """Return the run in one line: how it ended, after how long, and its last metrics."""
        return headline(self)

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """Return the report as one HTML page that needs nothing else: no scripts, no other files, no network.

        Args:
            path: A file to which the page is written. Default: none.
        """
        page = whole_page(self)
        if path is not None:
            Path(path).write_text(page, encoding="utf-8")
        return page

    def to_perfetto(self, path: str | os.PathLike[str]) -> None:
        """Save a trace that https://ui.perfetto.dev and ``chrome://tracing`` open.

        The trace has a process for each rank, with its phases in every attempt and its measured steps. For each step,
        it shows the time spent waiting for data and in collectives.

        Args:
            path: The JSON file to write; if it ends in ``.gz``, it is compressed.
        """
        write_trace(self, path)

    def _repr_html_(self) -> str:
        return fragment(self)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/html": fragment(self), "text/plain": str(self)}

    def __str__(self) -> str:
        return printable(table(self))

    def __repr__(self) -> str:
        return f"<RunReport of {self.function or 'a run'}: {self.headline()}>"
