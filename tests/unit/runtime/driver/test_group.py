"""The driver's decisions about one launch, message by message."""

import pytest

from spark_tensorflow_distributor.runtime.driver.group import (
    ALL_GATHER_SECONDS,
    LOST_SECONDS,
    PICKLE_SECONDS,
    SILENT_SECONDS,
    STACKS_SECONDS,
    VERDICT_SECONDS,
    Group,
)
from spark_tensorflow_distributor.runtime.driver.outcome import root_cause
from spark_tensorflow_distributor.runtime.failures import Failure


def member(rank):
    return {"rank": rank, "host": f"h{rank}", "port": 1000 + rank}


def join(group, rank, now=0.0):
    group.connect(rank, {"rank": rank}, now)
    return group.receive(rank, {"type": "join", "member": member(rank)}, now)


def fail(group, rank, now, kind="exception"):
    return group.receive(rank, {"type": "failed", "failure": Failure(rank, "h", kind, "x").to_json()}, now)


@pytest.fixture
def met():
    group = Group(3)
    for rank in range(3):
        join(group, rank)
    return group


def test_all_are_told_when_the_last_has_joined():
    group = Group(2)
    assert join(group, 1) == []
    assert not group.has_met
    ((rank, message),) = join(group, 0)
    assert rank is None
    assert message["type"] == "members"
    assert [each["rank"] for each in message["members"]] == [1, 0]
    assert group.has_met


def test_a_rank_that_cannot_come_sends_all_to_spark():
    group = Group(3)
    join(group, 0)
    join(group, 2, 1.0)
    assert group.tick(ALL_GATHER_SECONDS - 0.1) == []
    sent = group.tick(ALL_GATHER_SECONDS)
    assert sent == [(0, {"type": "use_all_gather"}), (2, {"type": "use_all_gather"})]
    assert group.tick(100.0) == []
    # It was only late, and comes here after all.
    assert join(group, 1, 20.0) == [(1, {"type": "use_all_gather"})]


def test_released_when_all_are_done(met):
    assert met.receive(0, {"type": "done"}, 5.0) == []
    assert met.receive(2, {"type": "done"}, 5.0) == []
    assert met.receive(1, {"type": "done"}, 6.0) == [(None, {"type": "release"})]
    assert met.tick(7.0) == []


def test_who_has_lost_the_channel_is_not_waited_for(met):
    met.disconnect(1, 4.0)
    met.receive(0, {"type": "done"}, 5.0)
    met.receive(2, {"type": "done"}, 5.0)
    assert met.tick(4.0 + LOST_SECONDS - 0.1) == []
    assert met.tick(4.0 + LOST_SECONDS) == [(None, {"type": "release"})]
    assert (1, {"type": "release"}) in met.connect(1, {"rank": 1}, 20.0)


def test_who_comes_back_tells_what_it_reached(met):
    met.disconnect(1, 4.0)
    met.receive(0, {"type": "done"}, 5.0)
    met.receive(2, {"type": "done"}, 5.0)
    assert (None, {"type": "release"}) in met.connect(1, {"rank": 1, "state": "done"}, 6.0)


def test_a_failure_stops_all_after_a_moment_for_the_others(met):
    alive(met, 4.0, (0, 2))
    assert fail(met, 1, 5.0) == []
    assert met.tick(5.0 + VERDICT_SECONDS - 0.1) == []
    ((rank, message),) = met.tick(5.0 + VERDICT_SECONDS)
    assert rank is None
    assert message == {"type": "stop", "reason": "Stopped because rank 1 failed."}
    assert met.tick(50.0) == []
    assert (2, message) in met.connect(2, {"rank": 2}, 51.0)


def test_nobody_is_waited_for_when_all_have_failed(met):
    fail(met, 1, 5.0)
    fail(met, 0, 5.1)
    assert fail(met, 2, 5.2)[0][1]["type"] == "stop"


def test_a_failure_before_all_have_met():
    group = Group(3)
    join(group, 0)
    fail(group, 1, 1.0)
    assert group.tick(3.0)[0][1]["type"] == "stop"


def alive(group, now, ranks, state="sleeping"):
    for rank in ranks:
        group.receive(rank, {"type": "alive", "state": state}, now)


def step(group, rank, steps, now, at=None):
    return group.receive(rank, {"type": "step", "steps": steps, "at": at}, now)


AT = {"fit": 0, "epoch": 1, "step": 6}


def test_a_stall_is_told_with_the_stacks_of_all_ranks():
    group = Group(2, stall_timeout=10)
    assert group.tick(100.0) == []  # not met yet: start_timeout's affair
    for rank in (0, 1):
        join(group, rank, 100.0)
        step(group, rank, 6 + rank, 104.0, AT)
    alive(group, 113.0, (0, 1))
    assert group.tick(113.9) == []
    assert group.tick(114.1) == [(None, {"type": "stacks"})]
    assert group.tick(114.5) == []
    assert group.receive(1, {"type": "stacks", "stacks": "Thread 1", "state": "sleeping"}, 115.0) == []
    ((_, message),) = group.receive(0, {"type": "stacks", "stacks": "Thread 0", "state": "sleeping"}, 115.1)
    assert "stall_timeout=10" in message["reason"]
    assert "Rank 0 is behind (epoch 2, after step 6)" in message["reason"]
    assert {rank: each.kind for rank, each in group.failures.items()} == {0: "stalled", 1: "stalled"}
    assert "Rank 1 is waiting for rank 0" in group.failures[1].message
    assert group.failures[0].traceback == "Thread 0"


def test_a_rank_that_does_not_answer_is_not_waited_for():
    group = Group(2, stall_timeout=10)
    for rank in (0, 1):
        join(group, rank, 100.0)
    group.tick(111.0)
    group.receive(0, {"type": "stacks", "stacks": "", "state": "sleeping"}, 112.0)
    assert group.tick(111.0 + STACKS_SECONDS - 0.1) == []
    assert "Rank 1 is behind: its host does not answer" in group.tick(111.0 + STACKS_SECONDS)[0][1]["reason"]


@pytest.mark.parametrize(
    ("message", "is_progress"),
    [
        ({"type": "log"}, False),
        ({"type": "alive", "state": "running"}, False),
        ({"type": "step", "steps": 6, "at": AT}, False),
        ({"type": "step", "steps": 7, "at": {**AT, "step": 7}}, True),
        ({"type": "committed"}, True),
    ],
)
def test_what_counts_as_progress_in_fit(message, is_progress):
    group = Group(1, stall_timeout=10)
    join(group, 0, 100.0)
    step(group, 0, 6, 101.0, AT)
    group.receive(0, message, 108.0)
    assert (group.tick(112.0) == []) is is_progress


def test_outside_of_fit_output_is_progress():
    group = Group(2, stall_timeout=10)
    for rank in (0, 1):
        join(group, rank, 100.0)
    group.receive(0, {"type": "log"}, 109.0)  # the chief's, of a loop of the function's own
    assert group.tick(115.0) == []
    assert group.tick(119.5) == [(None, {"type": "stacks"})]


def test_a_rank_of_which_nothing_is_heard_is_lost(met):
    for rank in range(3):
        step(met, rank, 5, 10.0, AT)
    alive(met, 10.0 + SILENT_SECONDS, (0, 1))
    assert met.tick(10.0 + SILENT_SECONDS) == []
    ((_, message),) = met.tick(10.5 + SILENT_SECONDS)
    assert message == {"type": "stop", "reason": "Stopped because rank 2 failed."}
    assert met.failures[2].kind == "lost"
    assert "its host, or the network to it, is down" in met.failures[2].message


UNAVAILABLE = {"error_type": "tensorflow.python.framework.errors_impl.UnavailableError"}


def collateral(group, rank, now):
    failure = Failure(rank, "h", "exception", "UnavailableError: Connection reset by peer", **UNAVAILABLE)
    return group.receive(rank, {"type": "failed", "failure": failure.to_json()}, now)


def test_who_is_silent_is_the_cause_when_others_fail(met):
    """TensorFlow's own heartbeats tell the others that a peer is gone before the driver could be sure of it."""
    alive(met, 10.0, range(3))
    alive(met, 20.0, (0, 1))
    for rank in (0, 1):
        collateral(met, rank, 20.0)
    assert met.tick(20.0 + VERDICT_SECONDS)[0][1]["type"] == "stop"
    assert met.failures[2].kind == "lost"
    assert root_cause(met.failures) == 2


def test_a_stopped_process_is_the_cause_when_others_fail(met):
    alive(met, 20.0, (0, 1))
    alive(met, 20.0, [2], state="stopped")
    for rank in (0, 1):
        collateral(met, rank, 20.0)
    met.tick(20.0 + VERDICT_SECONDS)
    assert met.failures[2].kind == "stalled"
    assert root_cause(met.failures) == 2


def test_a_rank_that_others_make_steps_with_is_not_lost(met):
    """They could not without it: only the way to the driver is closed."""
    for rank in range(3):
        step(met, rank, 5, 10.0, AT)
    met.disconnect(2, 11.0)
    for second in range(12, 100):
        for rank in (0, 1):
            step(met, rank, second, float(second), AT)
        assert met.tick(float(second)) == []


def test_a_rank_that_is_back_in_time_is_not_lost(met):
    met.disconnect(2, 1.0)
    for second in range(2, 18, 2):
        alive(met, float(second), (0, 1))
    met.connect(2, {"rank": 2, "state": "hello"}, 18.0)
    alive(met, 22.0, range(3))
    assert met.tick(22.0) == []


def test_a_chief_that_waits_for_ranks_that_are_done(met):
    met.receive(0, {"type": "phase", "name": "result"}, 5.0)
    met.receive(1, {"type": "done"}, 6.0)
    met.receive(2, {"type": "done"}, 6.0)
    alive(met, 5.0 + PICKLE_SECONDS, [0])
    assert met.tick(5.0 + PICKLE_SECONDS) == []
    ((_, message),) = met.tick(5.1 + PICKLE_SECONDS)
    assert "return the same value on every rank" in message["reason"]
