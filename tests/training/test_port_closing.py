"""Closing TensorFlow's port, with stand-ins for TensorFlow's collectives and context."""

import socket

import pytest
import tensorflow as tf

from spark_tensorflow_distributor.training import port_closing


class Collectives:
    """Two workers: this one, and another of which the test says whether it could connect."""

    rank, world_size = 0, 2

    def __init__(self, other_is_connected):
        self._other = other_is_connected

    def all_reduce(self, tensor):
        return tensor + float(self._other)


class Context:
    def __init__(self, error=None):
        self.asked, self._error = [], error

    def check_collective_ops_peer_health(self, task, timeout_in_ms):
        self.asked.append(task)
        if self._error is not None:
            raise self._error


@pytest.fixture
def listener(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(port_closing, "own_port", lambda: server.getsockname()[1])
        yield server


def closes(monkeypatch, listener, context, other_is_connected=True):
    """Call ``close_port``; return whether the port is closed, and the warnings."""
    loader = type("Loader", (), {"load": staticmethod(lambda: type("Module", (), {"context": lambda: context}))})
    monkeypatch.setattr(port_closing, "EAGER_CONTEXT", loader)
    warnings = []
    port_closing.close_port(Collectives(other_is_connected), warnings.append)
    try:
        socket.create_connection(listener.getsockname(), timeout=2).close()
    except ConnectionRefusedError:
        return True, warnings
    return False, warnings


def test_the_port_refuses_connections_and_keeps_those_that_exist(monkeypatch, listener):
    context = Context()
    with socket.create_connection(listener.getsockname()) as client, listener.accept()[0] as connection:
        assert closes(monkeypatch, listener, context) == (True, [])
        client.sendall(b"still here")
        assert connection.recv(10) == b"still here"
    assert context.asked == ["/job:worker/replica:0/task:1"]


def test_the_port_stays_open_if_a_worker_cannot_reach_another(monkeypatch, listener):
    error = tf.errors.UnavailableError(None, None, "no route to host")
    is_closed, (warning,) = closes(monkeypatch, listener, Context(error))
    assert not is_closed
    assert "stay open" in warning
    assert "no route to host" in warning
    assert closes(monkeypatch, listener, Context(), other_is_connected=False) == (False, [])
