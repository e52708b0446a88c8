import json
import socket

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


def no_channel():
    return DriverLink([], b"s", {})


def all_gather_with(*others):
    return lambda message: [*(json.dumps(each) for each in others), message]


def test_all_gather_returns_the_members_in_rank_order():
    all_gather = all_gather_with(member(2), member(0))
    members, method = meet(member(1), 3, no_channel(), all_gather, deadline_after(1))
    assert [each["rank"] for each in members] == [0, 1, 2]
    assert method == "allGather"
    assert cluster_spec(members, loopback=False) == {"worker": ["h:5000", "h:5001", "h:5002"]}
    assert cluster_spec(members, loopback=True)["worker"][0] == "127.0.0.1:5000"


def test_a_missing_rank_is_an_error():
    with pytest.raises(RendezvousError, match=r"Expected ranks 0 to 2, met \[1\]"):
        meet(member(1), 3, no_channel(), all_gather_with(), deadline_after(1))


def test_different_versions_of_tensorflow_are_rejected():
    check_versions([member(0), member(1, "2.21.3")])
    with pytest.raises(ClusterError, match=r"2\.16: b \(2\.16\.1\)"):
        check_versions([member(0), member(1, "2.16.1", "b")])
    with pytest.raises(ClusterError, match="none"):
        check_versions([member(0), member(1, "")])


def test_a_held_port_is_reserved():
    with hold_port() as holder, socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("", holder.getsockname()[1]))


def test_a_port_from_a_range():
    with hold_port() as any_port:
        free = any_port.getsockname()[1]
    with hold_port(range(free, free + 1)) as held:
        assert held.getsockname()[1] == free
        with pytest.raises(ClusterError, match="workerPorts"):
            hold_port(range(free, free + 1))
