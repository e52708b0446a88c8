import pytest

from spark_tensorflow_distributor.process_group.topology import (
    Topology,
    barrier_partners,
    distances,
    doubling_partners,
    segments,
)


def test_workers_are_grouped_by_machine():
    topology = Topology(("a", "b", "a", "c", "b"))
    assert topology.groups == ((0, 2), (1, 4), (3,))
    assert topology.leaders == (0, 1, 3)
    assert topology.group_of(4) == (1, 4)
    assert topology.local_peers(4) == {1}
    assert topology.remote_peers(1) == {0, 3}
    assert topology.remote_peers(4) == set()


@pytest.mark.parametrize("size", range(1, 40))
@pytest.mark.parametrize("is_local", [True, False])
def test_who_connects_to_whom_is_agreed(size, is_local):
    topology = Topology(tuple("a" if is_local else f"m{rank}" for rank in range(size)))
    peers = topology.local_peers if is_local else topology.remote_peers
    for rank in range(size):
        assert rank not in peers(rank)
        assert all(rank in peers(other) for other in peers(rank))


def test_the_number_of_connections_grows_with_the_logarithm():
    topology = Topology(tuple(map(str, range(1000))))
    assert max(len(topology.remote_peers(rank)) for rank in range(1000)) <= 13


@pytest.mark.parametrize("size", range(1, 20))
def test_after_a_barrier_everybody_has_heard_from_everybody(size):
    heard = [{index} for index in range(size)]
    for distance in distances(size):
        heard = [heard[index] | heard[index - distance] for index in range(size)]
        assert all((index + distance) % size in barrier_partners(index, size) for index in range(size))
    assert all(each == set(range(size)) for each in heard)


@pytest.mark.parametrize("size", range(1, 40))
def test_partners_of_recursive_doubling_are_mutual(size):
    for index in range(size):
        for partner in doubling_partners(index, size):
            assert index in doubling_partners(partner, size)


def test_segments_cover_everything_once():
    assert segments(10, 3) == [(0, 3), (3, 6), (6, 10)]
    assert segments(1, 3) == [(0, 0), (0, 0), (0, 1)]
