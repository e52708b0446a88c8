"""Frames, the handshake, and what an outsider can do at the channel: nothing."""

import json
import socket
import threading

import pytest

from spark_tensorflow_distributor import RendezvousError
from spark_tensorflow_distributor.runtime.agent.link import DriverLink
from spark_tensorflow_distributor.runtime.agent.output import LineSplitter, Tail, decode
from spark_tensorflow_distributor.runtime.driver.channel import Channel
from spark_tensorflow_distributor.runtime.wire import FrameReader, chunks, frame

SECRET = b"s" * 32


@pytest.fixture
def channel():
    made = Channel(SECRET, "127.0.0.1", ("127.0.0.1",))
    yield made
    made.close()


def link_to(channel, secret=SECRET, rank=0):
    return DriverLink(channel.addresses, secret, {"type": "hello", "rank": rank, "host": "h"})


def next_event(channel):
    return channel.events.get(timeout=5)


def test_frames_come_out_whole_however_they_are_cut():
    messages = [{"a": 1}, {"text": "ünï" * 100}, {}]
    data = b"".join(map(frame, messages))
    for size in (1, 3, 7, len(data)):
        reader = FrameReader()
        out = [m for start in range(0, len(data), size) for m in reader.feed(data[start : start + size])]
        assert out == messages


def test_a_foreign_protocol_is_refused():
    with pytest.raises(ValueError, match="not one of ours"):
        list(FrameReader().feed(b"GET / HTTP/1.1\r\n"))


def test_chunks():
    data = memoryview(bytes(range(256)) * 5000)
    assert b"".join(chunks(data)) == data
    assert [len(c) for c in chunks(data)] == [1 << 20, 256 * 5000 - (1 << 20)]
    assert list(chunks(memoryview(b""))) == []


def test_messages_both_ways(channel):
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


def test_a_result_goes_whole(channel, tmp_path):
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


def test_without_the_secret_nobody_gets_in(channel, caplog):
    with pytest.raises((RendezvousError, AssertionError)):
        assert link_to(channel, b"x" * 32).connect()
    assert channel.events.empty()
    assert "does not hold the secret" in caplog.text


def test_an_agent_does_not_talk_to_a_stranger():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def stranger():
            connection, _ = server.accept()
            connection.sendall(b"c" * 32)
            connection.recv(64)
            connection.sendall(b"w" * 32)
            connection.recv(1)
            connection.close()

        thread = threading.Thread(target=stranger)
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
    assert link._waiting_bytes < 3 << 20
    link.send({"type": "done"})  # never dropped
    assert json.loads(link._waiting[-1][4:]) == {"type": "done"}
    theirs.close()
    link.close(linger=0)


def test_an_unreachable_driver_is_no_error():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    link = DriverLink([address], SECRET, {})
    assert not link.connect()
    assert link.refused_since is not None
    link.send_lines("stdout", ["lost"])
    assert link.dropped_lines == 1


def test_lines_of_any_kind():
    splitter = LineSplitter()
    assert splitter.feed(b"one\ntw") == [b"one"]
    assert splitter.feed(b"o\n10%\r20%\r30%\n") == [b"two", b"30%"]
    assert splitter.feed(b"windows\r\n\n") == [b"windows", b""]
    assert splitter.feed(b"rest") == []
    assert splitter.close() == [b"rest"]
    assert splitter.close() == []
    assert [len(line) for line in LineSplitter().feed(b"x" * 20_000)] == [8192, 8192]
    assert decode(b"\xffabc") == "\\xffabc"
    tail = Tail(lines=2, longest=3)
    for line in (b"aaaa", b"bbbb", b"cccc"):
        tail.add(line)
    assert tail.get() == ("bbb", "ccc")
