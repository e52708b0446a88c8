from spark_tensorflow_distributor.runtime.agent.environment import hosts_of, worker_contexts


def test_neighbours_share_a_host_and_partition_0_is_rank_0():
    contexts = worker_contexts(["a", "b", "b", "a"])
    assert [c.rank for c in contexts] == [0, 2, 3, 1]
    assert [c.local_rank for c in contexts] == [0, 0, 1, 1]
    assert [c.node_rank for c in contexts] == [0, 1, 1, 0]
    assert {c.local_world_size for c in contexts} == {2}
    assert {c.world_size for c in contexts} == {4}


def test_hosts_with_different_numbers_of_workers():
    contexts = worker_contexts(["b", "a", "b"])
    assert [(c.rank, c.local_world_size) for c in contexts] == [(0, 2), (2, 1), (1, 2)]


def test_hosts_of_task_addresses():
    assert hosts_of(["10.0.0.1:4040", "host.name:1", "[fe80::1]:77", "bare"]) == [
        "10.0.0.1",
        "host.name",
        "[fe80::1]",
        "bare",
    ]
