import json
from dataclasses import asdict, replace

import pytest

from spark_tensorflow_distributor import ClusterError, RendezvousError
from spark_tensorflow_distributor.process_group.spec import Member
from spark_tensorflow_distributor.runtime.agent.link import DriverLink
from spark_tensorflow_distributor.runtime.agent.rendezvous import (
    MemberFacts,
    check_versions,
    cluster_spec,
    deadline_after,
    exchange_addresses,
    group_spec,
)


def member(rank, tensorflow="2.21.0", host="h"):
    return MemberFacts(rank, host, tensorflow, Member(f"{host}.net", 5000 + rank, host, "00"), ("10.0.0.1",))


def no_channel():
    return DriverLink([], b"s", {})


def all_gather_with(*others, has_channel=False):
    return lambda message: [*(json.dumps(asdict(replace(each, has_channel=has_channel))) for each in others), message]


def test_all_gather_returns_the_members_in_rank_order():
    all_gather = all_gather_with(member(2), member(0))
    members, method = exchange_addresses(member(1), 3, no_channel(), all_gather, deadline_after(1))
    assert members == [replace(member(rank), has_channel=False) for rank in range(3)]
    assert method == "allGather"
    assert cluster_spec(members) == {"worker": ["h.net:5000", "h.net:5001", "h.net:5002"]}
    assert group_spec(1, members, b"secret", 0, "auto").members[2] == Member("h.net", 5002, "h", "00")


def test_a_missing_rank_is_an_error():
    with pytest.raises(RendezvousError, match=r"Expected ranks 0 to 2, found \[1\]"):
        exchange_addresses(member(1), 3, no_channel(), all_gather_with(), deadline_after(1))


def test_different_versions_of_tensorflow_are_rejected():
    check_versions([member(0), member(1, "2.21.3")])
    with pytest.raises(ClusterError, match=r"TensorFlow: h \(2\.21\.0\); b \(2\.16\.1\)\."):
        check_versions([member(0), member(1, "2.16.1", "b")])
    with pytest.raises(ClusterError, match="none"):
        check_versions([member(0), member(1, "")])
