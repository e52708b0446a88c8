import contextlib
import os

import pytest

from spark_tensorflow_distributor.runtime.process_tools import environment, is_alive, start_time


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    monkeypatch.setenv("STFD_CHANGED", "before")
    monkeypatch.setenv("STFD_UNSET", "before")
    monkeypatch.delenv("STFD_NEW", raising=False)
    monkeypatch.delenv("STFD_OTHER", raising=False)


def test_environment_restores_what_it_changes():
    before = dict(os.environ)
    with environment({"STFD_CHANGED": "after", "STFD_NEW": "1", "STFD_UNSET": None}):
        assert os.environ["STFD_CHANGED"] == "after"
        assert os.environ["STFD_NEW"] == "1"
        assert "STFD_UNSET" not in os.environ
        os.environ["STFD_OTHER"] = "stays"
    assert os.environ.pop("STFD_OTHER") == "stays"
    assert dict(os.environ) == before


def test_environment_restores_everything_after_an_error():
    before = dict(os.environ)
    with contextlib.suppress(KeyError), environment({"STFD_NEW": "1"}, restore_all=True):
        os.environ["STFD_OTHER"] = "1"
        del os.environ["STFD_CHANGED"]
        raise KeyError
    assert dict(os.environ) == before


def test_a_reused_pid_is_another_process():
    started = start_time(os.getpid())
    assert is_alive(os.getpid(), started)
    assert not is_alive(os.getpid(), started + "0")
