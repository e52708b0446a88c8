"""The workers' output and the progress bar at the driver."""

import io
import sys

import pytest

from spark_tensorflow_distributor.runtime.driver.console import Console, FitBar, wants_progress


def lines(*texts, dropped=0, stream="stdout"):
    return {"stream": stream, "lines": list(texts), "dropped": dropped}


def test_lines_carry_rank_and_host(capsys):
    console = Console(show_lines=True, show_progress=False)
    console.lines(3, "host", lines("a", "b"))
    console.lines(0, "other", lines("e", stream="stderr"))
    console.warn(1, "h", "careful")
    out, err = capsys.readouterr()
    assert out == "[rank 3 @ host] a\n[rank 3 @ host] b\n"
    assert err == "[rank 0 @ other] e\n[rank 1 @ h] WARNING: careful\n"


def test_dropped_lines_are_reported_once(capsys):
    console = Console(show_lines=True, show_progress=False)
    for _ in range(2):
        console.lines(0, "h", lines("x", dropped=7))
    assert capsys.readouterr().out.count("7 lines not shown") == 1


def test_a_closed_terminal_is_logged_once(monkeypatch, caplog):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    console = Console(show_lines=True, show_progress=False)
    console.lines(0, "h", lines("x"))
    console.lines(0, "h", lines("y"))
    assert caplog.text.count("can no longer be shown") == 1


def test_characters_outside_the_terminals_encoding_are_escaped(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    Console(show_lines=True, show_progress=False).lines(0, "h", lines("ünï"))
    assert raw.getvalue() == b"[rank 0 @ h] \\xfcn\\xef\n"


def test_lines_are_shown_without_a_bar_that_fails(monkeypatch, capsys, caplog):
    def broken(self, message):
        raise RuntimeError("no widgets")

    monkeypatch.setattr(FitBar, "update", broken)
    console = Console(show_lines=True, show_progress=True)
    console.progress({"event": "fit_begin", "epochs": 1, "steps": 2})
    console.lines(0, "h", lines("still here"))
    console.close()
    assert "still here" in capsys.readouterr().out
    assert "progress bar cannot be shown" in caplog.text


@pytest.mark.parametrize(("steps", "shown"), [(4, "4/4 steps"), (None, "4 steps")])
def test_the_bar_shows_steps_and_metrics(capsys, steps, shown):
    console = Console(show_lines=True, show_progress=True)
    console.progress({"event": "fit_begin", "epochs": 2, "steps": steps})
    console.progress({"event": "step", "epoch": 0, "step": 1, "loss": 0.51234, "samples": 64})
    console.lines(0, "h", lines("a line"))
    console.progress({"event": "epoch_end", "epoch": 0, "step": 4, "logs": {"loss": 0.25}})
    console.progress({"event": "fit_end"})
    console.close()
    out, err = capsys.readouterr()
    assert out.splitlines()[-1].endswith("[rank 0 @ h] a line")
    for text in ("epoch 1/2", "loss=0.5123", "loss=0.25", shown):
        assert text in err


def test_a_bar_is_shown_as_requested_or_in_a_terminal(monkeypatch):
    assert wants_progress(True)
    assert not wants_progress(False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert wants_progress(None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert not wants_progress(None)
