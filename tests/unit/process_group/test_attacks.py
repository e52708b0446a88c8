"""Attacks by a relay between the members of a process group, after it has forwarded their handshake unchanged."""

import contextlib
import threading
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from process_groups import make_members
from relays import Relay
from spark_tensorflow_distributor.errors import CollectiveError
from spark_tensorflow_distributor.process_group.connection import PeerLostError
from spark_tensorflow_distributor.process_group.frames import HEADER_BYTES
from spark_tensorflow_distributor.process_group.group import ProcessGroup

# Rank 1 connects to rank 0: its answer to the challenge comes first.
ANSWER = 68
TAG = 16


def run_relayed(change, protection, work):
    """Call ``work(group)`` on two members of different machines, with a relay between them.

    Returns:
        Their results, or the exceptions raised; and what the relay has seen.
    """
    specs, listeners = make_members("ab")
    results = [None, None]
    with closing(Relay(("127.0.0.1", specs[0].members[0].port), change)) as relay:
        members = (replace(specs[0].members[0], port=relay.address[1]), specs[0].members[1])

        def run(rank):
            try:
                spec = replace(specs[rank], members=members, protection=protection)
                with closing(ProcessGroup.form(spec, *listeners[rank], 20)) as group:
                    try:
                        results[rank] = work(group)
                    finally:
                        with contextlib.suppress(threading.BrokenBarrierError):
                            together.wait(20)
            except Exception as error:
                results[rank] = error

        together = threading.Barrier(2)
        threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), "a member hangs"
        return results, relay.seen


def flip(place):
    def change(direction, data, passed):
        at = place - passed
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if direction == "up" and 0 <= at < len(data) else data

    return change


def sum_of(size):
    return lambda group: group.all_reduce([np.full(size, group.rank + 1, np.float32)])[0]


@pytest.mark.parametrize("protection", ["light", "integrity", "privacy"])
@pytest.mark.parametrize("place", [0, 10, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + TAG, HEADER_BYTES + TAG + 11])
def test_small_data_and_headers_cannot_be_changed(protection, place):
    results, _ = run_relayed(flip(ANSWER + place), protection, sum_of(3))
    assert isinstance(results[0], PeerLostError)
    assert "the received data was modified in transit" in str(results[0])


@pytest.mark.parametrize("protection", ["integrity", "privacy"])
@pytest.mark.parametrize("place", [0, 100_000])
def test_gradients_cannot_be_changed(protection, place):
    results, _ = run_relayed(flip(ANSWER + HEADER_BYTES + TAG + place), protection, sum_of(100_000))
    assert isinstance(results[0], PeerLostError)
    assert all(isinstance(each, CollectiveError) for each in results)


def test_gradients_can_be_changed_by_default():
    """The documentation says so: authenticating them would more than double the time of a sum on a fast network."""
    results, _ = run_relayed(flip(ANSWER + HEADER_BYTES + TAG + 1000), "light", sum_of(100_000))
    assert (results[0] != 3).sum() == 1


@pytest.mark.parametrize(("protection", "is_readable"), [("light", True), ("integrity", True), ("privacy", False)])
def test_what_can_be_read_on_the_way(protection, is_readable):
    values = np.arange(100_000, dtype=np.float32)
    results, seen = run_relayed(
        lambda direction, data, passed: data, protection, lambda group: group.all_reduce([values])[0]
    )
    assert all((each == values * 2).all() for each in results)
    # Each sends half of its values first.
    assert (values[:50_000].tobytes()[:1000] in seen["down"]) is is_readable
    assert (values[50_000:].tobytes()[:1000] in seen["up"]) is is_readable


@pytest.mark.parametrize("protection", ["light", "integrity", "privacy"])
def test_a_relay_can_say_no_farewell(protection):
    """A frame that ends the group, in the name of a member."""
    forged = b"STDf" + bytes(HEADER_BYTES - 4)

    def change(direction, data, passed):
        return forged + bytes(TAG) + data if direction == "up" and passed == ANSWER else data

    results, _ = run_relayed(change, protection, sum_of(3))
    assert isinstance(results[0], PeerLostError)
    assert "the received data was modified in transit" in str(results[0])


@pytest.mark.parametrize("protection", ["integrity", "privacy"])
def test_protected_groups_end_as_others_do(protection):
    """A member that raises says so, and members in different operations say where they are."""

    def work(group):
        if group.rank == 0:
            group.leave({"kind": "failed", "text": "ValueError: wrong"})
            return None
        return group.all_reduce([np.ones(3, np.float32)])

    results, _ = run_relayed(lambda direction, data, passed: data, protection, work)
    assert "Rank 0 failed: ValueError: wrong" in str(results[1])

    def differ(group):
        return group.barrier() if group.rank else group.all_reduce([np.ones(100_000, np.float32)])

    results, _ = run_relayed(lambda direction, data, passed: data, protection, differ)
    assert all("The workers are in different operations: rank 0 is in all_reduce" in str(each) for each in results)
