"""Shows a running training at the driver: the workers' output, and a progress bar for the chief's ``fit``."""

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

_log = logging.getLogger(__name__)


def wants_progress(requested: bool | None) -> bool:
    """Return whether to show a progress bar: as requested, or by default in a terminal or notebook."""
    if requested is not None:
        return requested
    return _in_notebook() or bool(getattr(sys.stderr, "isatty", lambda: False)())


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


class Console:
    """Prints the workers' output. A failure to print never fails a run.

    Args:
        show_lines: Whether to show the workers' output.
        show_progress: Whether to show the progress bar.
    """

    def __init__(self, *, show_lines: bool, show_progress: bool) -> None:
        self._show_lines = show_lines
        self._bar = FitBar() if show_progress else None
        self._dropped: dict[int, int] = {}
        self._broken = False

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
            lines.insert(0, f"{prefix}... {missed} lines not shown: they arrived faster than they could be printed ...")
        self._write(lines, stream)

    def warn(self, rank: int, host: str, text: str) -> None:
        """Show a warning from a worker, even if its output is not shown."""
        self._write([f"[rank {rank} @ {host}] WARNING: {text}"], sys.stderr)

    def progress(self, message: Mapping[str, Any]) -> None:
        """Update the bar with a progress report of the chief's ``fit``."""
        if self._bar is not None:
            self._draw(self._bar.update, message)

    def close(self) -> None:
        """Close the bar and leave its last state on the screen."""
        if self._bar is not None:
            self._draw(self._bar.close)

    def _write(self, lines: Sequence[str], stream: TextIO) -> None:
        text = "\n".join(lines) + "\n"
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


class FitBar:
    """A tqdm bar over the steps of the current epoch, with the loss and the samples per second."""

    _FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}{postfix}]"
    _FORMAT_NO_TOTAL = "{desc}: {n_fmt} steps [{elapsed}{postfix}]"

    def __init__(self) -> None:
        self._bar: Any = None
        self._epochs = 0
        self._steps: int | None = None
        self._rate: tuple[float, int] | None = None
        self._speed = ""

    def update(self, message: Mapping[str, Any]) -> None:
        """Show a progress report."""
        event = message["event"]
        if event == "fit_begin":
            self.close()
            self._epochs, self._steps, self._rate = int(message["epochs"]), message["steps"], None
        elif event == "step":
            self._step(message)
        elif event == "epoch_end":
            self._end_epoch(message)
        elif event == "fit_end":
            self.close()

    def _step(self, message: Mapping[str, Any]) -> None:
        bar = self._bar_for(int(message["epoch"]))
        self._measure(message.get("samples"))
        loss = message.get("loss")
        parts = ([f"loss={loss:.4g}"] if loss is not None else []) + ([self._speed] if self._speed else [])
        bar.set_postfix_str(", ".join(parts), refresh=False)
        bar.n = int(message["step"])
        bar.refresh()

    def _end_epoch(self, message: Mapping[str, Any]) -> None:
        bar = self._bar_for(int(message["epoch"]))
        logs = ", ".join(f"{name}={value:.4g}" for name, value in message["logs"].items())
        bar.set_postfix_str(", ".join(part for part in (logs, self._speed) if part), refresh=False)
        bar.n = int(message["step"])
        # The first epoch reveals the number of steps if it was unknown.
        self._steps = self._steps or bar.n
        bar.total = max(bar.total or 0, bar.n)
        bar.refresh()
        self.close()

    def _bar_for(self, epoch: int) -> Any:
        if self._bar is None:
            from tqdm.auto import tqdm

            self._bar = tqdm(
                total=self._steps,
                desc=f"epoch {epoch + 1}/{self._epochs}",
                bar_format=self._FORMAT if self._steps else self._FORMAT_NO_TOTAL,
                dynamic_ncols=True,
                leave=True,
            )
        return self._bar

    def _measure(self, samples: int | None) -> None:
        """Update the speed, in samples per second since an earlier report."""
        if samples is None:
            return
        now = time.monotonic()
        before, samples_before = self._rate or (-math.inf, samples)
        if now - before > 0.1:
            if samples > samples_before:
                self._speed = f"{_short((samples - samples_before) / (now - before))} samples/s"
            self._rate = (now, samples)

    def above(self, stream: TextIO) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which output to ``stream`` appears above the bar."""
        return contextlib.nullcontext() if self._bar is None else self._bar.external_write_mode(file=stream)

    def close(self) -> None:
        """Close the bar of the current epoch."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _short(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 10_000 else f"{value:.0f}"
