"""Collectives over the ranks of a group of processes."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from mwms import run_group

LENGTHS = (0, 1, 2, 2000, 2001, 70_000)


def call_collectives(strategy, **_):
    """Return what each call returned in this process."""
    import json
    import os

    from spark_tensorflow_distributor.training import collectives

    config = json.loads(os.environ.get("TF_CONFIG", '{"cluster": {"worker": [""]}, "task": {"index": 0}}'))
    rank, size = config["task"]["index"], len(config["cluster"]["worker"])
    collectives._CHUNK_VALUES = 1000  # so that small data is sent in several chunks, too
    group = collectives.Collectives(strategy, rank, size)
    found = {"gathered": group.gather_bytes(bytes([rank]) * (3 * rank + 1)), "empty": group.gather_bytes(b"")}
    for length in LENGTHS:
        data = bytes(range(256)) * (length // 256 + 1)
        found[length] = group.broadcast_bytes(data[:length] if rank == 0 else None)
    found["nothing"] = group.broadcast_bytes(None)
    return found


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_bytes_reach_all_ranks(workers):
    results = run_group("test_collectives:call_collectives", workers=workers)
    for found in results:
        assert found["gathered"] == [bytes([rank]) * (3 * rank + 1) for rank in range(workers)]
        assert found["empty"] == [b""] * workers
        assert found["nothing"] is None
        for length in LENGTHS:
            assert found[length] == (bytes(range(256)) * (length // 256 + 1))[:length]
