"""The time limit of a trainer that waits in TensorFlow for the others."""

import socket

from spark_tensorflow_distributor import RendezvousTimeoutError
from spark_tensorflow_distributor.runtime.agent.formation import FormationWatch


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def make(addresses):
    clock = Clock()
    return FormationWatch(0, "a", addresses, 20.0, clock), clock


def test_only_the_time_in_tensorflow_counts():
    watch, clock = make(["a:1"])
    clock.now += 1000
    assert not watch.has_timed_out
    watch.receive({"is_entered": True})
    clock.now += 19
    assert not watch.has_timed_out
    watch.receive({"is_entered": False})
    clock.now += 1000
    assert not watch.has_timed_out
    watch.receive({"is_entered": True})
    clock.now += 21
    assert watch.has_timed_out


def test_the_failure_names_the_workers_that_do_not_listen():
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (listening, listening, silent)]
        watch, _ = make(addresses)
        failure = watch.failure()
        assert f"nothing accepts connections at rank 2 ({addresses[2]})." in failure.message
        assert "start_timeout=20 s" in failure.message
        assert failure.kind == "startup"
        assert isinstance(failure.to_worker_failure().exception, RendezvousTimeoutError)
        watch, _ = make(addresses[:2])
        assert "but not all workers have joined" in watch.failure().message
