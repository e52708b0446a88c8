"""The command that runs a script, without Spark."""

import contextlib
import re
from argparse import Namespace
from types import SimpleNamespace

import pytest

from spark_tensorflow_distributor import ConfigurationError
from spark_tensorflow_distributor.cli import main as command
from spark_tensorflow_distributor.cli import run as module


@pytest.fixture
def failing(monkeypatch):
    """Let every run fail; return the list of sessions that were started."""
    sessions = []

    @contextlib.contextmanager
    def session(options, num_slots):
        sessions.append(num_slots)
        yield None

    class Runner:
        report = SimpleNamespace(to_html=lambda path: open(path, "w").close())

        def __init__(self, **arguments):
            pass

        def run(self, script, args):
            raise ZeroDivisionError

    monkeypatch.setattr(module, "session", session)
    monkeypatch.setattr(module, "MirroredStrategyRunner", Runner)
    monkeypatch.setattr(module, "runner_arguments", lambda options: {"num_slots": 2})
    return sessions


def options(report, script=__file__):
    return Namespace(num_slots=2, script=script, args=[], report=str(report))


def test_a_place_where_no_report_can_be_is_refused_before_anything_starts(failing, tmp_path):
    for place, text in ((tmp_path / "missing" / "r.html", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(ConfigurationError, match=text):
            module.run(options(place))
    assert failing == []


def test_mistakes_are_found_before_spark_starts(failing, monkeypatch, tmp_path, capsys):
    with pytest.raises(ConfigurationError, match=r"script 'missing\.py' cannot be read"):
        module.run(options("", script="missing.py"))
    monkeypatch.undo()

    def session(*_, **__):
        raise AssertionError

    monkeypatch.setattr(module, "session", session)
    monkeypatch.setattr(command.doctor, "session", session)
    for words in (["run", "--num-slots", "1", "--env", "FOO", __file__], ["doctor", "--env", "FOO"]):
        assert command.main(words) == 2
        assert "--env 'FOO' is not of the form NAME=VALUE" in capsys.readouterr().err
    assert command.main(["run", "--num-slots", "0", __file__]) == 2
    assert "--num-slots is 0; it must be at least 1." in capsys.readouterr().err


def test_an_unknown_option_shows_the_usage_of_its_command(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["run", "--num-slots", "1", "--cpuu", "train.py"])
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert re.search(r"usage: \S.* run ", shown)
    assert "run: error: unrecognized arguments: --cpuu" in shown


def test_a_report_that_cannot_be_written_does_not_hide_the_error_of_the_run(failing, tmp_path, capsys, monkeypatch):
    with pytest.raises(ZeroDivisionError):
        module.run(options(tmp_path / "report.html"))
    assert (tmp_path / "report.html").exists()

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.MirroredStrategyRunner, "report", SimpleNamespace(to_html=full))
    with pytest.raises(ZeroDivisionError):
        module.run(options(tmp_path / "report.html"))
    assert "The report cannot be saved: [Errno 28] No space left on device." in capsys.readouterr().err


@pytest.mark.parametrize("name", ["run", "doctor", "demo"])
def test_help_is_plain_text(name, capsys):
    with pytest.raises(SystemExit):
        command.main([name, "--help"])
    assert not re.search("``|:class:", capsys.readouterr().out)
