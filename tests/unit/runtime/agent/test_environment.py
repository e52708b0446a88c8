"""Where the workers of a group stand."""

from spark_tensorflow_distributor.runtime.agent.environment import hosts_of, worker_contexts


def test_neighbours_share_a_host_and_partition_0_is_rank_0():
    placed = worker_contexts(["a", "b", "b", "a"])
    assert [p.rank for p in placed] == [0, 2, 3, 1]
    assert [p.local_rank for p in placed] == [0, 0, 1, 1]
    assert [p.node_rank for p in placed] == [0, 1, 1, 0]
    assert {p.local_world_size for p in placed} == {2}
    assert {p.world_size for p in placed} == {4}


def test_uneven_hosts():
    placed = worker_contexts(["b", "a", "b"])
    assert [(p.rank, p.local_world_size) for p in placed] == [(0, 2), (2, 1), (1, 2)]


def test_the_host_of_an_address():
    assert hosts_of(["10.0.0.1:4040", "host.name:1", "[fe80::1]:77", "bare"]) == [
        "10.0.0.1",
        "host.name",
        "[fe80::1]",
        "bare",
    ]
