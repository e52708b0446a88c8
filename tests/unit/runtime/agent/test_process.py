import signal

import pytest

from spark_tensorflow_distributor.runtime.agent.process import TrainerOutcome, explain_exit
from spark_tensorflow_distributor.runtime.failures import Failure


@pytest.mark.parametrize(
    ("code", "kind", "summary", "words"),
    [
        (3, "exit", "exit status 3", "before the function returned"),
        (-signal.SIGKILL, "signal", "killed by signal 9 (SIGKILL)", "most likely by the out-of-memory killer"),
        (-signal.SIGSEGV, "signal", "killed by signal 11 (SIGSEGV)", "a crash in native code"),
        (-signal.SIGTERM, "signal", "killed by signal 15 (SIGTERM)", "sent by another process"),
        (-99, "signal", "killed by signal 99 (unknown)", "sent by another process"),
    ],
)
def test_exits_are_explained(code, kind, summary, words):
    found = explain_exit(code, 3 << 30)
    assert (found.kind, found.summary) == (kind, summary)
    assert words in found.message
    assert "peak RSS 3.0 GiB" in found.message
    assert "peak RSS unknown" in explain_exit(code, 0).message


def concluded(outcome, exited):
    made = TrainerOutcome()
    made.conclude(1, "host", outcome, exited)
    return made


def test_a_returned_value():
    made = concluded({"type": "outcome", "size": 7}, None)
    assert (made.failure, made.result_bytes, made.exit) == (None, 7, "ok")


def test_a_reported_failure_takes_precedence_over_the_exit():
    failure = Failure(1, "host", "exception", "ValueError: x\nmore")
    made = concluded({"type": "outcome", "failure": failure.to_json()}, {"type": "exited", "code": 1})
    assert (made.failure, made.exit) == (failure, "ValueError: x")
    long = Failure(1, "host", "exception", "x" * 300)
    assert concluded({"type": "outcome", "failure": long.to_json()}, None).exit == "x" * 199 + "…"


def test_an_exit_without_an_outcome_is_a_failure():
    made = concluded(None, {"type": "exited", "code": 3, "peak_rss": 5})
    assert (made.failure.rank, made.failure.host, made.failure.kind) == (1, "host", "exit")
    assert (made.exit, made.peak_rss) == ("exit status 3", 5)


def test_a_lost_fork_server_is_a_failure():
    made = concluded(None, {"error": "the server has ended"})
    assert made.failure.kind == "signal"
    assert "the server has ended" in made.failure.message


def test_a_running_trainer_was_stopped():
    made = concluded(None, None)
    assert (made.failure, made.exit) == (None, "stopped")
