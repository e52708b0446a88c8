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
            children=(SimpleNamespace(value=""), SimpleNamespace(value=0), text),
        )
        super().__init__(*args, gui=True, **options)

    def refresh(self):
        self.container.children[2].value = str(self.postfix).replace(" ", "\N{FIGURE SPACE}")

    def close(self):
        if self.disable:  # closed before
            return
        self.disable = True
        self.refresh()


@pytest.fixture
def outputs(monkeypatch):
    """The outputs of a notebook's cell by their id."""
    shown = {}
    monkeypatch.setattr(tqdm.auto, "tqdm", WidgetBar)
    monkeypatch.setattr(display, "display", lambda data, raw, display_id: shown.setdefault(display_id, data))
    monkeypatch.setattr(display, "update_display", lambda data, raw, display_id: shown.update({display_id: data}))
    return shown


def test_text_replaces_the_widget_at_the_end(outputs, capsys):
    bar = RunBar()
    bar.update({"event": "fit_begin", "epochs": 4, "steps": 10})
    bar.update({"event": "epoch_end", "epoch": 0, "step": 10, "logs": {"loss": 0.5, "auc": 0.9}})
    (data,) = outputs.values()
    assert data["text/plain"] == ""
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == "id of the widget"
    assert bar._bar.container.children[2].value == "loss=0.5, auc=0.9"  # with spaces at which lines break
    bar.update({"event": "fit_end"})
    (data,) = outputs.values()
    assert data == {"text/plain": "epoch 1/4:  25%|██▌       | 10/40 steps [00:00, loss=0.5, auc=0.9]"}
    assert capsys.readouterr().out == ""


def test_the_number_of_steps_is_unknown(outputs):
    bar = RunBar()
    bar.update({"event": "fit_begin", "epochs": 4, "steps": None})
    bar.update({"event": "step", "epoch": 0, "step": 7, "loss": 0.5})
    bar.update({"event": "fit_end"})
    assert list(outputs.values()) == [{"text/plain": "epoch 1/4: 7 steps [00:00, loss=0.5]"}]
