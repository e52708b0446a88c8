"""The driver's decisions about one launch, message by message."""

import pytest

from spark_tensorflow_distributor.driver.group import (
    LOST_SECONDS,
    MEET_ELSEWHERE_SECONDS,
    PICKLE_SECONDS,
    VERDICT_SECONDS,
    Group,
)
from spark_tensorflow_distributor.protocol import failure_record


def member(rank):
    return {"rank": rank, "host": f"h{rank}", "port": 1000 + rank}


def join(group, rank, now=0.0):
    group.connect(rank, {"rank": rank}, now)
    return group.receive(rank, {"type": "join", "member": member(rank)}, now)


def fail(group, rank, now, kind="exception"):
    return group.receive(rank, {"type": "failed", "failure": failure_record(rank, "h", kind, "x")}, now)


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
    assert group.tick(MEET_ELSEWHERE_SECONDS - 0.1) == []
    sent = group.tick(MEET_ELSEWHERE_SECONDS)
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


def test_a_stall():
    group = Group(1, stall_timeout=10)
    assert group.tick(100.0) == []  # not met yet: start_timeout's affair
    join(group, 0, 100.0)
    assert group.receive(0, {"type": "log"}, 105.0) == []
    assert group.tick(114.0) == []
    assert "stall_timeout=10" in group.tick(116.0)[0][1]["reason"]


def test_a_chief_that_waits_for_ranks_that_are_done(met):
    met.receive(0, {"type": "phase", "name": "result"}, 5.0)
    met.receive(1, {"type": "done"}, 6.0)
    met.receive(2, {"type": "done"}, 6.0)
    assert met.tick(5.0 + PICKLE_SECONDS) == []
    ((_, message),) = met.tick(5.1 + PICKLE_SECONDS)
    assert "return the same value on every rank" in message["reason"]
