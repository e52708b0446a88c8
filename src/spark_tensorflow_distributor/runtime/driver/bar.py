"""The progress bar of a run."""

import contextlib
import importlib
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from ...formatting import printable_line

# Samples per second are measured over at least this long.
_SPEED_SECONDS = 0.1


class RunBar:
    """One tqdm bar for each ``fit``, over all of its epochs and all attempts.

    It shows the epoch, the steps, the time left until the last epoch ends, the loss, the metrics of the last epoch and
    the samples per second. A saved notebook does not keep widgets, so text replaces a widget at the end.
    """

    _FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}{postfix}]"
    _FORMAT_NO_TOTAL = "{desc}: {n_fmt} steps [{elapsed}{postfix}]"
    # What replaces a widget. Its bar has a fixed width, because the text lies in a page of any width.
    _FORMAT_TEXT = "{desc}: {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} steps [{elapsed}{postfix}]"

    def __init__(self) -> None:
        self._bar: Any = None
        self._attempt = 0
        self._fit = self._shown_fit = -1
        self._epoch = self._epochs = 0
        self._steps: int | None = None
        self._is_measuring = False
        self._rate: tuple[float, int] | None = None
        self._loss: float | None = None
        self._metrics: dict[str, float] = {}
        self._speed = ""

    def begin_attempt(self, attempt: int) -> None:
        """Begin another attempt, in which calls of ``fit`` are counted from the first again."""
        self._attempt, self._fit = attempt, -1

    def update(self, message: Mapping[str, Any]) -> None:
        """Show a progress report (see ``training.progress``)."""
        event = message["event"]
        if event == "fit_begin":
            self._begin_fit(int(message["epochs"]), message["steps"])
        elif event == "step":
            self._measure(message.get("samples"))
            self._loss = message.get("loss", self._loss)
            self._show(int(message["epoch"]), int(message["step"]))
        elif event == "epoch_end":
            # The first epoch reveals the number of steps if it was unknown.
            self._steps = self._steps or int(message["step"]) or None
            logs = dict(message["logs"])
            self._loss, self._metrics = logs.pop("loss", self._loss), logs
            self._show(int(message["epoch"]), int(message["step"]))
            self._rate = None  # an evaluation follows, which trains no samples
        elif event == "fit_end":
            self.close()

    def _begin_fit(self, epochs: int, steps: int | None) -> None:
        self._fit += 1
        if self._fit != self._shown_fit:
            self.close()
            self._loss, self._metrics, self._steps = None, {}, None
        self._shown_fit, self._epochs, self._steps = self._fit, epochs, steps or self._steps
        self._rate, self._speed, self._is_measuring = None, "", False

    def _show(self, epoch: int, step: int) -> None:
        self._epoch = epoch
        done = step if self._steps is None else epoch * self._steps + step
        if self._bar is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tqdm warns without ipywidgets, where a text bar will do
                from tqdm.auto import tqdm
            total = None if self._steps is None else self._steps * self._epochs
            bar_format = self._FORMAT_NO_TOTAL if total is None else self._FORMAT
            is_widget = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
            options = {"display": False} if is_widget else {}
            self._bar = tqdm(
                total=total, desc=self._title(), bar_format=bar_format, dynamic_ncols=True, leave=True, **options
            )
            if is_widget:
                _display_widget(self._bar)
        bar = self._bar
        if self._steps is not None and bar.total is None:
            bar.bar_format = self._FORMAT
            bar.reset(total=self._steps * self._epochs)
        if not self._is_measuring:
            # Estimate the time left from the steps that follow: those before were done earlier, or skipped on resuming.
            self._is_measuring = True
            bar.initial, bar.start_t = max(0, done - 1), time.time()
            bar.last_print_t = bar.start_t
        if bar.total is not None:
            bar.total = max(bar.total, done)
        bar.n = done
        bar.set_description_str(self._title(), refresh=False)
        bar.set_postfix_str(self._values(), refresh=False)
        with _breaking_lines(bar):
            bar.refresh()

    def _title(self) -> str:
        attempt = f"attempt {self._attempt + 1}, " if self._attempt else ""
        fit = f"fit {self._shown_fit + 1}, " if self._shown_fit > 0 else ""
        return f"{attempt}{fit}epoch {self._epoch + 1}/{self._epochs}"

    def _values(self) -> str:
        values = {} if self._loss is None else {"loss": self._loss}
        texts = [f"{printable_line(name)}={value:.4g}" for name, value in {**values, **self._metrics}.items()]
        return ", ".join([*texts, *([self._speed] if self._speed else [])])

    def _measure(self, samples: int | None) -> None:
        """Update the speed, in samples per second since an earlier report."""
        if samples is None:
            return
        now = time.monotonic()
        if self._rate is None:
            self._rate = (now, samples)
            return
        before, samples_before = self._rate
        if now - before > _SPEED_SECONDS:
            if samples > samples_before:
                self._speed = f"{_short((samples - samples_before) / (now - before))} samples/s"
            self._rate = (now, samples)

    def above(self, stream: Any) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which output to ``stream`` appears above the bar."""
        return contextlib.nullcontext() if self._bar is None else self._bar.external_write_mode(file=stream)

    def close(self) -> None:
        """Close the bar, and leave its last state on the screen."""
        if self._bar is None:
            return
        bar, self._bar = self._bar, None
        if not hasattr(bar, "container"):
            bar.close()
            return
        shape = self._FORMAT_NO_TOTAL if bar.total is None else self._FORMAT_TEXT
        text = bar.format_meter(**{**bar.format_dict, "bar_format": shape, "ncols": None})
        bar.close()
        _update_display(bar, {"text/plain": text})


def _display_widget(bar: Any) -> None:
    """Display the widget of a bar.

    The text for pages that cannot show widgets is empty, because tqdm's would be the bar at 0 %.
    """
    view = {"version_major": 2, "version_minor": 0, "model_id": bar.container.model_id}
    data = {"text/plain": "", "application/vnd.jupyter.widget-view+json": view}
    _ipython_display().display(data, raw=True, display_id=bar.container.model_id)
    bar.displayed = True


def _update_display(bar: Any, data: Mapping[str, str]) -> None:
    """Replace the widget of a bar in the notebook."""
    _ipython_display().update_display(data, raw=True, display_id=bar.container.model_id)


def _ipython_display() -> Any:
    return importlib.import_module("IPython.display")


@contextlib.contextmanager
def _breaking_lines(bar: Any) -> Iterator[None]:
    """Let a widget's text that is set in this context wrap into lines; tqdm pads it with spaces that do not break."""
    if not hasattr(bar, "container"):
        yield
        return
    text = bar.container.children[-1]
    with text.hold_sync():  # one message instead of two
        yield
        text.value = text.value.replace("\N{FIGURE SPACE}", " ")


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


def _short(value: float) -> str:
    return f"{value / 1000:.1f}k" if value >= 10_000 else f"{value:.0f}"
