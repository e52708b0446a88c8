import pytest

from spark_tensorflow_distributor import ClusterError, RendezvousError
from spark_tensorflow_distributor.runtime.agent.link import DriverLink
from spark_tensorflow_distributor.runtime.agent.rendezvous import (
    check_versions,
    cluster_spec,
    deadline_after,
    hold_port,
    meet,
)


def member(rank, tensorflow="2.21.0", host="h"):
    return {"rank": rank, "host": host, "port": 5000 + rank, "tensorflow": tensorflow}


class FakeBarrier:
    """What the other ranks would say."""

    def __init__(self, others):
        self.others = others

    def allGather(self, message):
        return [*self.others, message]

    def barrier(self):
        pass


def no_channel():
    return DriverLink([], b"s", {})


def test_through_sparks_allgather_in_the_order_of_ranks():
    import json

    barrier = FakeBarrier([json.dumps(member(2)), json.dumps(member(0))])
    members, way = meet(member(1), 3, no_channel(), barrier, deadline_after(1))
    assert [each["rank"] for each in members] == [0, 1, 2]
    assert way == "allGather"
    assert cluster_spec(members, loopback=False) == {"worker": ["h:5000", "h:5001", "h:5002"]}
    assert cluster_spec(members, loopback=True)["worker"][0] == "127.0.0.1:5000"


def test_a_rank_that_is_missing():
    with pytest.raises(RendezvousError, match=r"Expected ranks 0 to 2, met \[1\]"):
        meet(member(1), 3, no_channel(), FakeBarrier([]), deadline_after(1))


def test_one_tensorflow_for_all():
    check_versions([member(0), member(1, "2.21.3")])
    with pytest.raises(ClusterError, match=r"2\.16: b \(2\.16\.1\)"):
        check_versions([member(0), member(1, "2.16.1", "b")])
    with pytest.raises(ClusterError, match="none"):
        check_versions([member(0), member(1, "")])


def test_a_held_port_is_taken():
    import socket

    with hold_port() as holder, socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("", holder.getsockname()[1]))


def test_a_port_of_a_range():
    with hold_port() as any_port:
        free = any_port.getsockname()[1]
    with hold_port(range(free, free + 1)) as held:
        assert held.getsockname()[1] == free
        with pytest.raises(ClusterError, match="workerPorts"):
            hold_port(range(free, free + 1))
