"""The workers' output and the progress bar on the driver."""

import io
import logging
import sys

import pytest

from spark_tensorflow_distributor.runtime.driver.bar import RunBar
from spark_tensorflow_distributor.runtime.driver.console import Console, wants_progress


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


def test_workers_cannot_control_the_terminal(capsys):
    console = Console(show_lines=True, show_progress=True)
    console.lines(3, "ho\x1b[2Jst", lines("\x1b[31mred\x1b[0m", "a\n[rank 0 @ h] forged", "\x1b]52;c;aaaa\x07"))
    console.warn(1, "h", "careful\n\x1b[5A[rank 0 @ h] forged")
    console.progress({"event": "fit_begin", "epochs": 1, "steps": 1})
    console.progress({"event": "epoch_end", "epoch": 0, "step": 1, "logs": {"\x1b]0;title\x07": 1.0}})
    console.close()
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "[rank 3 @ host] red",
        "[rank 3 @ host] a\\n[rank 0 @ h] forged",
        "[rank 3 @ host] \\x1b]52;c;aaaa\\x07",
    ]
    assert err.startswith("[rank 1 @ h] WARNING: careful\n[rank 1 @ h] [rank 0 @ h] forged\n")
    assert "\x1b]" not in err
    assert "\x07" not in err


def test_dropped_lines_are_reported_once(capsys):
    console = Console(show_lines=True, show_progress=False)
    for _ in range(2):
        console.lines(0, "h", lines("x", dropped=7))
    assert capsys.readouterr().out.count("7 lines are missing here") == 1


def test_lines_may_go_to_logging(capsys, caplog):
    caplog.set_level(logging.INFO, "spark_tensorflow_distributor.workers")
    console = Console(show_lines=True, show_progress=False, log_lines=True)
    console.lines(3, "host", lines("50 % done", stream="stderr"))
    console.warn(1, "h", "careful")
    assert [(record.levelname, record.getMessage(), record.rank, record.host) for record in caplog.records] == [
        ("INFO", "[rank 3 @ host] 50 % done", 3, "host"),
        ("WARNING", "[rank 1 @ h] careful", 1, "h"),
    ]
    assert caplog.records[0].stream == "stderr"
    assert capsys.readouterr() == ("", "")


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

    monkeypatch.setattr(RunBar, "update", broken)
    console = Console(show_lines=True, show_progress=True)
    console.progress({"event": "fit_begin", "epochs": 1, "steps": 2})
    console.lines(0, "h", lines("still here"))
    console.close()
    assert "still here" in capsys.readouterr().out
    assert "progress bar cannot be shown" in caplog.text


@pytest.mark.parametrize(("steps", "shown"), [(4, "4/8 steps"), (None, "4/8 steps")])
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


def step(epoch, number, loss=0.5):
    return {"event": "step", "epoch": epoch, "step": number, "loss": loss, "samples": None}


def test_one_bar_spans_all_epochs_and_attempts(capsys):
    console = Console(show_lines=True, show_progress=True)
    console.begin_attempt(0)
    console.progress({"event": "fit_begin", "epochs": 4, "steps": 10})
    console.progress(step(0, 1))
    console.progress({"event": "epoch_end", "epoch": 0, "step": 10, "logs": {"loss": 0.3, "val_loss": 0.4}})
    console.progress(step(1, 5))
    console.begin_attempt(1)
    console.progress({"event": "fit_begin", "epochs": 4, "steps": 10})
    console.progress(step(1, 3))
    console.progress(step(3, 10))
    console.progress({"event": "fit_end"})
    console.close()
    err = capsys.readouterr().err
    assert "epoch 2/4:  38%" in err
    assert "15/40 steps" in err
    assert "loss=0.5, val_loss=0.4" in err
    assert "attempt 2, epoch 2/4" in err
    assert "13/40 steps" in err
    assert "attempt 2, epoch 4/4: 100%" in err
    assert err.count("\n") == 1  # one bar


def test_what_logging_writes_appears_above_the_bar(capsys):
    console = Console(show_lines=True, show_progress=True)
    with console.above_bar():
        print("no bar yet", file=sys.stderr)
    console.progress({"event": "fit_begin", "epochs": 1, "steps": 2})
    console.progress(step(0, 1))
    with console.above_bar():
        print("lost", file=sys.stderr)
    console.close()
    before, after = capsys.readouterr().err.split("lost\n")
    assert before.endswith("\r")  # the bar has been cleared
    assert "epoch 1/1:  50%" in after


def test_the_time_left_is_that_of_the_steps_after_resuming(capsys):
    bar = RunBar()
    bar.update({"event": "fit_begin", "epochs": 10, "steps": 100})
    bar.update(step(9, 1))
    bar._bar.start_t -= 10  # ten seconds for the one step since
    bar.update(step(9, 2))
    bar.close()
    assert "08:10" in capsys.readouterr().err  # 98 steps of 5 s


def test_a_second_fit_has_its_own_bar(capsys):
    bar = RunBar()
    for _ in range(2):
        bar.update({"event": "fit_begin", "epochs": 1, "steps": 2})
        bar.update({"event": "epoch_end", "epoch": 0, "step": 2, "logs": {"loss": 1.0}})
        bar.update({"event": "fit_end"})
    bar.close()
    err = capsys.readouterr().err
    assert "fit 2, epoch 1/1: 100%" in err
    assert err.count("\n") == 2


def test_a_bar_is_shown_as_requested_or_in_a_terminal(monkeypatch):
    assert wants_progress(True)
    assert not wants_progress(False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert wants_progress(None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert not wants_progress(None)
