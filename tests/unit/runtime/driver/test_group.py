"""The driver's decisions about one launch, message by message."""

import time

import pytest

from spark_tensorflow_distributor.process_group.out_of_step import OutOfStepError
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


def test_members_are_sent_when_the_last_rank_has_joined():
    group = Group(2)
    assert join(group, 1) == []
    assert not group.has_met
    ((rank, message),) = join(group, 0)
    assert rank is None
    assert message["type"] == "members"
    assert message["members"] == {"rank": [1, 0], "host": ["h1", "h0"], "port": [1001, 1000]}
    assert group.has_met


def test_a_missing_rank_sends_all_to_all_gather():
    """It may be waiting there because it cannot reach the driver."""
    group = Group(3)
    join(group, 0)
    join(group, 2, 1.0)
    assert group.tick(ALL_GATHER_SECONDS - 0.1) == []
    sent = group.tick(ALL_GATHER_SECONDS)
    assert sent == [(0, {"type": "use_all_gather"}), (2, {"type": "use_all_gather"})]
    assert group.tick(100.0) == []
    # It was only late, and connects after all.
    assert join(group, 1, 20.0) == [(1, {"type": "use_all_gather"})]


@pytest.fixture
def met_elsewhere():
    """Rank 2 was late, so all ranks have exchanged their addresses through allGather; rank 3 has no channel."""
    group = Group(4)
    join(group, 0)
    join(group, 1)
    group.tick(ALL_GATHER_SECONDS)
    join(group, 2, 16.0)
    assert not group.has_met
    for rank in range(3):
        group.receive(rank, {"type": "met"}, 17.0)
    assert group.has_met
    return group


def test_silence_is_noticed_wherever_the_ranks_have_met(met_elsewhere):
    alive(met_elsewhere, 17.0 + SILENT_SECONDS, (0, 1))
    assert met_elsewhere.tick(17.0 + SILENT_SECONDS) == []
    ((_, message),) = met_elsewhere.tick(17.5 + SILENT_SECONDS)
    assert message == {"type": "stop", "reason": "Stopped because rank 2 failed."}
    assert met_elsewhere.failures.keys() == {2}  # of rank 3, the driver has never heard


def test_a_rank_that_waits_in_all_gather_for_others_is_not_lost():
    group = Group(3)
    join(group, 0)
    join(group, 1)
    group.tick(ALL_GATHER_SECONDS)
    assert group.tick(500.0) == []
    assert not group.has_met  # start_timeout still applies


def test_a_rank_that_does_not_read_is_lost(met):
    """It still sends heartbeats, but neither commands nor rows reach it."""
    met.block(2, 10.0)
    for second in range(11, 31):
        alive(met, float(second), range(3))
        assert met.tick(float(second)) == []
    alive(met, 31.0, range(3))
    assert met.tick(31.0)[0][1]["type"] == "stop"
    assert met.failures.keys() == {2}
    assert "has not read the driver's messages for 20 s" in met.failures[2].message


def test_a_rank_that_reads_again_is_not_lost(met):
    met.block(2, 10.0)
    alive(met, 25.0, range(3))
    met.unblock(2)
    alive(met, 40.0, range(3))
    assert met.tick(41.0) == []


def test_events_take_constant_time_in_large_groups():
    """The driver handles thousands of heartbeats; only ``tick`` may look at all ranks."""
    group = Group(100_000)
    for rank in range(100_000):
        join(group, rank)
    started = time.monotonic()
    for rank in range(99_999):
        group.receive(rank, {"type": "alive", "state": "running"}, 1.0)
        assert group.receive(rank, {"type": "done"}, 1.0) == []
    assert time.monotonic() - started < 10  # looking at all ranks each time would take hours
    assert group.receive(99_999, {"type": "done"}, 1.0) == [(None, {"type": "release"})]


def test_released_when_all_are_done(met):
    assert met.receive(0, {"type": "done"}, 5.0) == []
    assert met.receive(2, {"type": "done"}, 5.0) == []
    assert met.receive(1, {"type": "done"}, 6.0) == [(None, {"type": "release"})]
    assert met.tick(7.0) == []


def test_a_rank_without_a_channel_does_not_delay_the_release(met):
    met.disconnect(1, 4.0)
    met.receive(0, {"type": "done"}, 5.0)
    met.receive(2, {"type": "done"}, 5.0)
    assert met.tick(4.0 + LOST_SECONDS - 0.1) == []
    assert met.tick(4.0 + LOST_SECONDS) == [(None, {"type": "release"})]
    assert (1, {"type": "release"}) in met.connect(1, {"rank": 1}, 20.0)


def test_a_reconnected_rank_repeats_its_state(met):
    met.disconnect(1, 4.0)
    met.receive(0, {"type": "done"}, 5.0)
    met.receive(2, {"type": "done"}, 5.0)
    assert (None, {"type": "release"}) in met.connect(1, {"rank": 1, "state": "done"}, 6.0)


def test_a_failure_stops_all_ranks_after_a_grace_period(met):
    alive(met, 4.0, (0, 2))
    assert fail(met, 1, 5.0) == []
    assert met.tick(5.0 + VERDICT_SECONDS - 0.1) == []
    ((rank, message),) = met.tick(5.0 + VERDICT_SECONDS)
    assert rank is None
    assert message == {"type": "stop", "reason": "Stopped because rank 1 failed."}
    assert met.tick(50.0) == []
    assert (2, message) in met.connect(2, {"rank": 2}, 51.0)


def test_no_grace_period_when_all_ranks_have_failed(met):
    fail(met, 1, 5.0)
    fail(met, 0, 5.1)
    assert fail(met, 2, 5.2)[0][1]["type"] == "stop"


def test_a_failure_before_all_have_joined():
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


def test_a_stall_is_reported_with_the_stacks_of_all_ranks():
    group = Group(2, stall_timeout=10)
    assert group.tick(100.0) == []  # not joined yet: start_timeout applies
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


def test_an_unresponsive_rank_does_not_delay_the_stall_report():
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
    group.receive(0, {"type": "log"}, 109.0)  # from the chief, in a custom loop
    assert group.tick(115.0) == []
    assert group.tick(119.5) == [(None, {"type": "stacks"})]


def test_a_silent_rank_is_lost(met):
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


def test_a_silent_rank_is_the_root_cause_when_others_fail(met):
    """TensorFlow's own heartbeats reveal a lost peer to the others before the driver can be certain."""
    alive(met, 10.0, range(3))
    alive(met, 20.0, (0, 1))
    for rank in (0, 1):
        collateral(met, rank, 20.0)
    assert met.tick(20.0 + VERDICT_SECONDS)[0][1]["type"] == "stop"
    assert met.failures[2].kind == "lost"
    assert root_cause(met.failures) == 2


def test_a_stopped_process_is_the_root_cause_when_others_fail(met):
    alive(met, 20.0, (0, 1))
    alive(met, 20.0, [2], state="stopped")
    for rank in (0, 1):
        collateral(met, rank, 20.0)
    met.tick(20.0 + VERDICT_SECONDS)
    assert met.failures[2].kind == "stalled"
    assert root_cause(met.failures) == 2


def test_a_trainer_that_is_suspended_for_long_fails_the_group(met):
    """Its peers wait for it, and the kernel keeps its connections alive."""
    for second in range(10, 40):
        alive(met, float(second), (0, 1))
        alive(met, float(second), [2], state="stopped")
        met.tick(float(second))
    assert met.failures[2].kind == "stalled"
    assert "has been stopped by a signal or a debugger for 21 s" in met.failures[2].message
    assert met.stop_reason == "Stopped because rank 2 failed."


def test_a_trainer_that_continues_in_time_does_not_fail_the_group(met):
    for second in range(10, 100):
        alive(met, float(second), (0, 1))
        alive(met, float(second), [2], state="stopped" if second % 15 else "running")
        assert met.tick(float(second)) == []
    assert met.stop_reason is None
    for second in range(100, 200):  # the others do not wait for it
        step(met, 0, second, float(second), AT)
        alive(met, float(second), [2], state="stopped")
        assert met.tick(float(second)) == []
    assert met.stop_reason is None


def test_a_silent_rank_is_not_lost_while_steps_complete(met):
    """A step needs all ranks, so only its connection to the driver is lost."""
    for rank in range(3):
        step(met, rank, 5, 10.0, AT)
    met.disconnect(2, 11.0)
    for second in range(12, 100):
        for rank in (0, 1):
            step(met, rank, second, float(second), AT)
        assert met.tick(float(second)) == []


def test_a_rank_that_reconnects_in_time_is_not_lost(met):
    met.disconnect(2, 1.0)
    for second in range(2, 18, 2):
        alive(met, float(second), (0, 1))
    met.connect(2, {"rank": 2, "state": "hello"}, 18.0)
    alive(met, 22.0, range(3))
    assert met.tick(22.0) == []


def test_a_chief_that_waits_for_finished_ranks(met):
    met.receive(0, {"type": "phase", "name": "result"}, 5.0)
    met.receive(1, {"type": "done"}, 6.0)
    met.receive(2, {"type": "done"}, 6.0)
    alive(met, 5.0 + PICKLE_SECONDS, [0])
    assert met.tick(5.0 + PICKLE_SECONDS) == []
    ((_, message),) = met.tick(5.1 + PICKLE_SECONDS)
    assert "return the same value on every rank" in message["reason"]


def announce(group, rank, method, now, number=1):
    call = {"type": "call", "number": number, "method": method, "key": method, "line": "train", "is_nested": False}
    return group.receive(rank, {**call, "may_be_alone": method != "fit"}, now)


def test_calls_are_answered_when_it_is_known_how_to_make_them(met):
    assert announce(met, 0, "evaluate", 1.0) == []
    assert announce(met, 2, "evaluate", 1.1) == []
    answer = {"type": "call_answer", "number": 1, "how": "together"}
    assert announce(met, 1, "evaluate", 1.2) == [(rank, answer) for rank in range(3)]


def test_the_chief_is_told_to_predict_alone_while_the_others_are_done(met):
    for rank in (1, 2):
        met.receive(rank, {"type": "done"}, 1.0)
    assert announce(met, 0, "predict", 2.0) == [(0, {"type": "call_answer", "number": 1, "how": "alone"})]


def test_a_call_is_answered_after_the_others_have_been_released(met):
    for rank in (1, 2):
        met.receive(rank, {"type": "done"}, 1.0)
    met.disconnect(0, 2.0)
    assert met.tick(2.0 + LOST_SECONDS) == [(None, {"type": "release"})]
    met.connect(0, {}, 20.0)
    answers = announce(met, 0, "evaluate", 21.0) + met.tick(21.1)
    assert answers == [(0, {"type": "call_answer", "number": 1, "how": "alone"})]


def test_a_late_rank_does_not_change_how_calls_are_made():
    group = Group(2)
    join(group, 0)
    group.tick(100.0)  # the other one is late, so that they meet through Spark
    assert group.uses_all_gather
    group.connect(1, {}, 101.0)
    group.receive(1, {"type": "done"}, 102.0)
    assert announce(group, 0, "predict", 103.0) == [(0, {"type": "call_answer", "number": 1, "how": "alone"})]


def test_steps_made_alone_are_progress_of_those_that_wait():
    group = Group(2, stall_timeout=10)
    for rank in (0, 1):
        join(group, rank, 100.0)
        step(group, rank, 6, 101.0, AT)
    announce(group, 0, "predict", 102.0)
    assert group.tick(106.0) == [(0, {"type": "call_answer", "number": 1, "how": "alone"})]
    for steps in range(7, 12):
        step(group, 0, steps, 100.0 + steps, AT)
        alive(group, 100.0 + steps, (0, 1))
    assert group.tick(120.0) == []
    assert group.progress.steps == {0: (6, AT), 1: (6, AT)}
    assert group.tick(122.0) == [(None, {"type": "stacks"})]


def test_a_fit_that_the_others_never_join_fails_the_group(met):
    assert announce(met, 0, "fit", 1.0) == []
    for rank in (1, 2):
        met.receive(rank, {"type": "done"}, 1.5)
    assert met.tick(1.6) == met.tick(3.0) == []
    ((_, message),) = met.tick(4.0)
    assert message == {"type": "stop", "reason": "Stopped because rank 0 failed."}
    failure = met.failures[0].to_worker_failure()
    assert isinstance(failure.exception, OutOfStepError)
    assert "rank 1 has returned from the training function" in failure.message


@pytest.mark.parametrize("loss", ["before", "after"])
def test_without_a_rank_on_the_channel_all_calls_are_made_together(met, loss):
    if loss == "before":
        met.disconnect(1, 0.5)
    announced = announce(met, 0, "predict", 1.0)
    if loss == "after":
        met.disconnect(1, 1.5)
    assert announced == met.tick(9.0) == []
    assert met.tick(12.0) == [(0, {"type": "call_answer", "number": 1, "how": "together"})]
    assert announce(met, 2, "fit", 12.1) == [(2, {"type": "call_answer", "number": 1, "how": "together"})]
    assert met.are_calls_lost


def test_a_rank_that_comes_back_in_time_says_what_it_is_doing(met):
    announce(met, 0, "predict", 1.0)
    announce(met, 2, "predict", 1.0)
    met.disconnect(1, 1.1)
    call = {"number": 1, "method": "predict", "key": "predict", "line": "train", "is_nested": False}
    calls = {"open": [{**call, "may_be_alone": True, "state": "waiting"}], "joined": 0, "barrier": None}
    met.connect(1, {"type": "hello", "calls": calls}, 2.0)
    together = {"type": "call_answer", "number": 1, "how": "together"}
    assert met.tick(2.1) == [(0, together), (1, together), (2, together)]
    met.disconnect(1, 2.2)  # with the answer
    assert (1, together) in met.connect(1, {"type": "hello", "calls": calls}, 3.0)
    assert not met.are_calls_lost
