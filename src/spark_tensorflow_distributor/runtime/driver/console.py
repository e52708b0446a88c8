"""Shows a run on the driver while it trains: the workers' output, and a progress bar for the chief's ``fit``."""

import contextlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from ...formatting import printable, printable_line
from .bar import RunBar, in_notebook
from .loggers import worker_log as _worker_log

_log = logging.getLogger(__name__)


def wants_progress(requested: bool | None) -> bool:
    """Return whether to show a progress bar: as requested, or by default in a terminal or notebook."""
    if requested is not None:
        return requested
    return in_notebook() or bool(getattr(sys.stderr, "isatty", lambda: False)())


class Console:
    """Prints the workers' output, and draws the bar, for all attempts of a run. A failure to print never fails a run.

    Args:
        show_lines: Whether to show the workers' output.
        show_progress: Whether to show the progress bar.
        log_lines: Whether the output goes to ``logging`` instead of the driver's own output.
    """

    def __init__(self, *, show_lines: bool, show_progress: bool, log_lines: bool = False) -> None:
        self._show_lines, self._log_lines = show_lines, log_lines
        self._bar = RunBar() if show_progress else None
        self._dropped: dict[int, int] = {}
        self._broken = False

    def begin_attempt(self, attempt: int) -> None:
        """Begin another attempt, whose workers count their dropped lines from 0 again."""
        self._dropped.clear()
        if self._bar is not None:
            self._bar.begin_attempt(attempt)

    def above_bar(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which other output to stderr, such as that of ``logging``, appears above the bar."""
        return contextlib.nullcontext() if self._bar is None else self._bar.above(sys.stderr)

    def lines(self, rank: int, host: str, message: Mapping[str, Any]) -> None:
        """Show lines of output from one worker, each as ``[rank 3 @ host] line``."""
        if not self._show_lines:
            return
        stream = sys.stderr if message["stream"] == "stderr" else sys.stdout
        prefix = f"[rank {rank} @ {host}] "
        lines = [prefix + line for line in message["lines"]]
        missed = int(message.get("dropped", 0)) - self._dropped.get(rank, 0)
        if missed > 0:
            self._dropped[rank] = int(message["dropped"])
            lines.insert(
                0, f"{prefix}... {missed} lines are missing here, more than could be shown; see the executor's log ..."
            )
        if lines and not self._log_lines:
            self._write(lines, stream)
        elif self._log_lines:
            for line in lines:
                _worker_log.info(
                    "%s", printable_line(line), extra={"rank": rank, "host": host, "stream": message["stream"]}
                )

    def warn(self, rank: int, host: str, text: str) -> None:
        """Show a warning from a worker, even if its output is not shown."""
        if self._log_lines:
            extra = {"rank": rank, "host": host}
            _worker_log.warning("[rank %d @ %s] %s", rank, host, printable(text), extra=extra)
            return
        first, *others = text.splitlines() or [""]
        prefix = f"[rank {rank} @ {host}] "
        self._write([f"{prefix}WARNING: {first}", *(prefix + line for line in others)], sys.stderr)

    def progress(self, message: Mapping[str, Any]) -> None:
        """Update the bar with a progress report of the chief's ``fit``."""
        if self._bar is not None:
            self._draw(self._bar.update, message)

    def close(self) -> None:
        """Close the bar and leave its last state on the screen."""
        if self._bar is not None:
            self._draw(self._bar.close)

    def _write(self, lines: Sequence[str], stream: TextIO) -> None:
        text = "".join(f"{printable_line(line)}\n" for line in lines)
        if self._broken:
            return
        try:
            with self._bar.above(stream) if self._bar is not None else contextlib.nullcontext():
                _print(text, stream)
        except Exception:  # a closed terminal, a full disk behind a redirect
            self._broken = True
            _log.warning("The workers' output can no longer be shown here.", exc_info=True)

    def _draw(self, show: Callable[..., None], *args: Any) -> None:
        try:
            show(*args)
        except Exception:  # a terminal or widget library that the bar cannot use; lines are still shown
            self._bar = None
            _log.warning("The progress bar cannot be shown here.", exc_info=True)


def _print(text: str, stream: TextIO) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:  # the driver's terminal has a narrower encoding than the worker's text
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, errors="backslashreplace").decode(encoding))
    stream.flush()
