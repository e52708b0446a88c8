"""The progress bar as a widget of a notebook, with stand-ins for ipywidgets."""

import contextlib
from types import SimpleNamespace

import pytest
import tqdm.auto
import tqdm.std

from spark_tensorflow_distributor.runtime.driver.bar import RunBar

display = pytest.importorskip("IPython.display")


class WidgetBar(tqdm.std.tqdm):
    """Does what the bar of ``tqdm.notebook`` does with its widgets."""

    __module__ = "tqdm.notebook"

    def __init__(self, *args, display, **options):
        assert not display
        text = SimpleNamespace(value="", hold_sync=contextlib.nullcontext)
        self.container = SimpleNamespace(
            model_id="id of the widget",
            children=(SimpleNamespace(value=""), SimpleNamespace(bar_style=""), text),
        )
        super().__init__(*args, gui=True, **options)

    def refresh(self):
        self.container.children[2].value = str(self.postfix).replace(" ", "\N{FIGURE SPACE}")

    def close(self):
        if self.disable:  # closed before
            return
        self.disable = True
        self.refresh()
        self.container.children[1].bar_style = "danger" if self.n < self.total else "success"


@pytest.fixture
def displayed(monkeypatch):
    shown = []
    monkeypatch.setattr(tqdm.auto, "tqdm", WidgetBar)
    monkeypatch.setattr(display, "display", lambda data, raw: shown.append(data))
    return shown


@pytest.mark.parametrize(("is_complete", "style"), [(True, "success"), (False, "danger")])
def test_a_saved_notebook_keeps_a_line_and_only_failures_are_red(displayed, capsys, is_complete, style):
    bar = RunBar()
    bar.update({"event": "fit_begin", "epochs": 4, "steps": 10})
    bar.update({"event": "epoch_end", "epoch": 0, "step": 10, "logs": {"loss": 0.5, "auc": 0.9}})
    _, shown, text = bar._bar.container.children
    (data,) = displayed
    assert data["text/plain"] == ""
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == "id of the widget"
    assert text.value == "loss=0.5, auc=0.9"  # with spaces at which lines break
    bar.update({"event": "fit_end", "is_complete": is_complete})
    assert text.value == "loss=0.5, auc=0.9"
    assert shown.bar_style == style
    assert capsys.readouterr().out.startswith("epoch 1/4: 10/40 steps [00:00, loss=0.5, auc=0.9]")
