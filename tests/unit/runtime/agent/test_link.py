"""The agent's link and the driver's channel, end to end: messages, results, the handshake, a slow or missing driver."""

import select
import socket
import threading
import time
from contextlib import closing

import pytest

from helpers import wait_until
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
    while len(got) < 2:
        select.select([link], [], [], 5)
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


def test_only_lines_are_dropped_if_the_driver_does_not_read(channel):
    """Messages overtake the lines, and the driver learns where lines are missing."""
    link = link_to(channel)
    link.connect()
    next_event(channel)
    for number in range(200):  # 20 MB, none of which the driver shows
        link.send_lines("stdout", [f"{number}-{line}" + "x" * 100 for line in range(1000)])
    assert link.dropped_lines > 100_000
    assert link._line_characters < 3 << 20
    link.send({"type": "done"})
    assert wait_until(lambda: not channel.events.empty())
    time.sleep(0.2)
    assert next_event(channel)[1] == {"type": "done"}
    assert len(link._lines) > 100
    dropped = link.dropped_lines
    lines, missing = [], []

    def show():
        while lines[-1:] != ["last"]:
            event = next_event(channel)[1]
            if event["type"] == "log":
                channel.show(0, event)
                lines.extend(event["lines"])
                missing.append((len(lines), event["dropped"]))

    shower = threading.Thread(target=show)
    shower.start()
    link.drain()
    link.send_lines("stdout", ["last"])
    link.close()
    shower.join(10)
    assert link.dropped_lines == dropped
    # Only at the end are lines missing: the buffer was full from some line on.
    assert [each for _, each in missing if each] == [dropped]
    shown = [line.rstrip("x") for line in lines[:-1]]
    assert shown == [f"{number // 1000}-{number % 1000}" for number in range(len(shown))]
    assert len(shown) + dropped == 200_000


def test_no_line_is_lost_if_the_driver_keeps_up(channel):
    link = link_to(channel)
    link.connect()
    expected = [str(number) for number in range(100_000)]
    got = []

    def show():
        while len(got) < len(expected):
            rank, event = next_event(channel)
            if event["type"] == "log":
                channel.show(rank, event)
                got.extend(event["lines"])

    shower = threading.Thread(target=show)
    shower.start()
    for start in range(0, len(expected), 1000):
        link.send_lines("stdout", expected[start : start + 1000])
        for _ in link.receive():
            pass
    link.drain()
    link.close()
    shower.join(20)
    assert got == expected
    assert link.dropped_lines == 0


def test_a_driver_that_shows_nothing_does_not_hold_up_the_end(channel, monkeypatch):
    monkeypatch.setattr("spark_tensorflow_distributor.runtime.agent.link._IDLE_SECONDS", 0.3)
    link = link_to(channel)
    link.connect()
    link.send_lines("stdout", ["x" * 1000] * 1000)
    link.drain()
    assert link.dropped_lines > 0
    link.close()
    assert [next_event(channel)[1]["type"] for _ in range(2)] == ["connected", "disconnected"]  # before any line
    logs = []
    while not channel.events.empty():
        logs.append(next_event(channel)[1])
    assert sum(len(event["lines"]) for event in logs) + link.dropped_lines == 1000
    assert logs[-1]["dropped"] == link.dropped_lines


def test_what_is_sent_without_a_connection_follows_the_next_hello(channel):
    link = link_to(channel)
    link.send({"type": "warning", "text": "early"})
    assert link.connect()
    link.flush()
    assert [next_event(channel)[1]["type"] for _ in range(2)] == ["connected", "warning"]
    link.close()


def test_an_unreachable_driver_is_not_an_error():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    link = DriverLink([address], SECRET, {})
    assert not link.connect()
    assert link.refused_since is not None
    link.send_lines("stdout", ["lost"])
    assert link.dropped_lines == 1
