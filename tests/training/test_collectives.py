"""Bytes between the ranks, by the collectives of their strategy."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from mwms import run_group


def everything(strategy, **_):
    """What a process gets of all calls."""
    import json
    import os

    from spark_tensorflow_distributor.training import collectives

    config = json.loads(os.environ.get("TF_CONFIG", '{"cluster": {"worker": [""]}, "task": {"index": 0}}'))
    rank, size = config["task"]["index"], len(config["cluster"]["worker"])
    collectives._AT_ONCE = 1000  # so that little goes in several pieces, too
    own = collectives.Collectives(strategy, rank, size)
    found = {"gathered": own.gather(bytes([rank]) * (3 * rank + 1)), "empty": own.gather(b"")}
    for length in (0, 1, 2, 2000, 2001, 70_000):
        data = bytes(range(256)) * (length // 256 + 1)
        found[length] = own.broadcast(data[:length] if rank == 0 else None)
    found["nothing"] = own.broadcast(None)
    return found


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_what_one_gives_the_others_get(workers):
    results = run_group("test_collectives:everything", workers=workers)
    for found in results:
        assert found["gathered"] == [bytes([rank]) * (3 * rank + 1) for rank in range(workers)]
        assert found["empty"] == [b""] * workers
        assert found["nothing"] is None
        for length in (0, 1, 2, 2000, 2001, 70_000):
            assert found[length] == (bytes(range(256)) * (length // 256 + 1))[:length]
