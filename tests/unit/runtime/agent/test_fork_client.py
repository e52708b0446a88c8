"""Reaching the executor's fork server, at a name that any user of the host can take."""

import os
import socket
import sys

import pytest

from spark_tensorflow_distributor.runtime.agent import fork_client
from spark_tensorflow_distributor.runtime.agent.fork_client import ForkClient

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs abstract socket names")


@pytest.fixture
def squatter(monkeypatch):
    """A socket at the name of the fork server."""
    monkeypatch.setattr(ForkClient, "_socket_name", lambda self: f"stfd-test-{os.getpid()}")
    monkeypatch.setattr(fork_client, "_CONNECT_SECONDS", 0.3)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0stfd-test-{os.getpid()}")
        yield listener


def make():
    return ForkClient(warm=True, env={}, preload=[], warm_seconds=0.0)


def check_private(client, problem):
    try:
        assert problem in client.warning
        messages = []
        while not messages:
            messages = list(client.receive())
        assert messages[0]["type"] == "ready"
    finally:
        client.close()


def test_another_user_at_the_name_of_the_server_does_not_stop_the_run(squatter, monkeypatch):
    squatter.listen()
    monkeypatch.setattr(fork_client, "peer_uid", lambda connection: os.getuid() + 1)
    check_private(make(), f"belongs to the user {os.getuid() + 1}")


def test_nor_does_one_that_does_not_listen(squatter):
    check_private(make(), "cannot be connected to")


def test_nor_does_one_that_does_not_accept(squatter):
    squatter.listen(0)
    waiting = []
    while True:  # fill its queue
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        waiting.append(sock)
        try:
            sock.connect(squatter.getsockname())
        except BlockingIOError:
            break
    check_private(make(), "cannot be connected to")
    for sock in waiting:
        sock.close()
