"""The agent's link and the driver's channel, end to end: messages, results, the handshake, a slow or missing driver."""

import json
import socket
import threading
from contextlib import closing

import pytest

from spark_tensorflow_distributor import RendezvousError
from spark_tensorflow_distributor.runtime.agent.link import DriverLink
from spark_tensorflow_distributor.runtime.driver.channel import Channel

SECRET = b"s" * 32


@pytest.fixture
def channel():
    with closing(Channel(SECRET, "127.0.0.1", ("127.0.0.1",))) as made:
        yield made


def link_to(channel, secret=SECRET, rank=0):
    return DriverLink(channel.addresses, secret, {"type": "hello", "rank": rank, "host": "h"})


def next_event(channel):
    return channel.events.get(timeout=5)


def test_messages_travel_both_ways(channel):
    link = link_to(channel, rank=3)
    assert link.connect()
    assert next_event(channel)[1]["type"] == "connected"
    link.send({"type": "join", "n": 1})
    assert next_event(channel) == (3, {"type": "join", "n": 1})
    channel.send(3, {"type": "release"})
    channel.send(None, {"type": "stop"})
    channel.send(9, {"type": "nobody"})
    got = []
    link._socket.setblocking(True)
    while len(got) < 2:
        got += link.receive()
    assert [m["type"] for m in got] == ["release", "stop"]
    link.close()
    assert next_event(channel) == (3, {"type": "disconnected"})


def test_a_result_arrives_whole(channel, tmp_path):
    path = tmp_path / "result"
    path.write_bytes(b"0123456789" * 300_000)
    link = link_to(channel)
    link.connect()
    with open(path, "rb") as file:
        assert link.send_result(file, 2_500_000)
    next_event(channel)
    _, message = next_event(channel)
    assert b"".join(message["chunks"]) == (b"0123456789" * 300_000)[:2_500_000]
    link.close()


def test_the_driver_rejects_an_agent_without_the_secret(channel, caplog):
    with pytest.raises((RendezvousError, AssertionError)):
        assert link_to(channel, b"x" * 32).connect()
    assert channel.events.empty()
    assert "does not hold the secret" in caplog.text


def test_an_agent_rejects_a_driver_without_the_secret():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def impostor():
            connection, _ = server.accept()
            connection.sendall(b"c" * 32)
            connection.recv(64)
            connection.sendall(b"w" * 32)
            connection.recv(1)
            connection.close()

        thread = threading.Thread(target=impostor)
        thread.start()
        link = DriverLink([server.getsockname()], SECRET, {})
        with pytest.raises(RendezvousError, match="does not hold this run's secret"):
            link.connect()
        link.close()
    thread.join(5)


def test_a_driver_that_does_not_read_costs_only_log_lines():
    ours, theirs = socket.socketpair()
    link = DriverLink([], SECRET, {})
    ours.setblocking(False)
    link._socket = ours
    lines = ["x" * 100] * 1000
    for _ in range(200):  # 20 MB
        link.send_lines("stdout", lines)
    assert link.dropped_lines > 100_000
    assert link._unsent_bytes < 3 << 20
    link.send({"type": "done"})  # never dropped
    assert json.loads(link._unsent[-1][4:]) == {"type": "done"}
    theirs.close()
    link.close(linger=0)


def test_an_unreachable_driver_is_not_an_error():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    link = DriverLink([address], SECRET, {})
    assert not link.connect()
    assert link.refused_since is not None
    link.send_lines("stdout", ["lost"])
    assert link.dropped_lines == 1
