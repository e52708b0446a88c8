import errno

import pytest

from spark_tensorflow_distributor.runtime.agent.environment import (
    full_disk_error,
    hosts_of,
    phase_seconds,
    worker_contexts,
)


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


@pytest.mark.parametrize(
    ("met", "phases", "expected"),
    [
        (3.0, {"import": 3.0, "strategy": 7.0, "train": 8.0, "result": 18.0}, [1, 2, 4, 1, 10, 2]),
        (3.0, {"import": 3.0, "strategy": 7.0, "data": 7.5, "train": 8.0, "result": 18.0}, [1, 2, 4, 0.5, 0.5, 10, 2]),
        (3.0, {"import": 3.0, "strategy": 7.0, "train": 8.0}, [1, 2, 4, 1, 12]),
        (3.0, {"import": 3.0}, [1, 2, 17]),
        (None, {}, [1, 19]),
    ],
)
def test_the_phases_of_a_worker_end_with_it(met, phases, expected):
    found = phase_seconds(0.0, 1.0, met, phases, 20.0)
    assert list(found.values()) == expected
    assert sum(expected) == 20.0


def test_a_full_disk_is_explained(monkeypatch):
    monkeypatch.setenv("SPARK_LOCAL_DIRS", "")
    for number in (errno.ENOSPC, errno.EDQUOT):
        text = str(full_disk_error(OSError(number, "Reason"), "host-1"))
        assert f"on host-1 is full: [Errno {number}] Reason. Free space there" in text
    too_large = str(full_disk_error(OSError(errno.EFBIG, "File too large"), "host-1"))
    assert "on host-1 would exceed the limit for the size of a file: [Errno 27] File too large. Raise it" in too_large
    assert full_disk_error(OSError(errno.EACCES, "Permission denied"), "host-1") is None
    assert full_disk_error(ValueError("full"), "host-1") is None
