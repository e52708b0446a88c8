"""Attacks on the driver's channel, and loads that would stop it."""

import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, suppress

import pytest

from helpers import wait_until
from relays import Relay
from spark_tensorflow_distributor import EncryptionUnsupportedError
from spark_tensorflow_distributor.resume.driver_store import DriverCheckpointStore
from spark_tensorflow_distributor.runtime.agent.checkpoints import CheckpointTransfer
from spark_tensorflow_distributor.runtime.agent.link import DriverLink, open_connection
from spark_tensorflow_distributor.runtime.driver.channel import Channel
from spark_tensorflow_distributor.transport import sealing

SECRET = b"s" * 32
PROTECTIONS = ["integrity", "privacy"]
HELLO = {"type": "hello", "rank": 0, "host": "h"}


@pytest.fixture
def open_channel():
    with ExitStack() as opened:

        def make(**options):
            store = opened.enter_context(closing(DriverCheckpointStore()))
            channel = opened.enter_context(
                closing(Channel(SECRET, "127.0.0.1", ("127.0.0.1",), checkpoints=store, **options))
            )
            channel.kept = store
            return channel

        yield make


def link_to(address, rank=0, **options):
    return DriverLink([address], SECRET, {**HELLO, "rank": rank}, **options)


def kinds_until(channel, last, seconds=10):
    """Return the types of the events up to one of a type."""
    kinds = []
    while not kinds or kinds[-1] != last:
        kinds.append(channel.events.get(timeout=seconds)[1]["type"])
    return kinds


def check_serves(channel, rank=0, **options):
    with closing(link_to(channel.addresses[0], rank, **options)) as link:
        started = time.monotonic()
        assert link.connect()
        link.send({"type": "phase", "name": "train", "time": 0.0})
        assert kinds_until(channel, "phase") == ["connected", "phase"]
        assert time.monotonic() - started < 3
        link.close()
        assert kinds_until(channel, "disconnected") == ["disconnected"]


# Attacks by a relay between the hosts, after it has forwarded the handshake unchanged.


@pytest.fixture
def relayed(open_channel, request):
    """A channel, a link to it through a relay, and the relay."""
    channel = open_channel(protection=request.param)
    with (
        closing(Relay(channel.addresses[0])) as relay,
        closing(link_to(relay.address, protection=request.param)) as link,
    ):
        assert link.connect()
        link.send({"type": "phase", "name": "import", "time": 0.0})
        assert kinds_until(channel, "phase") == ["connected", "phase"]
        channel.send(0, {"type": "first"})
        assert wait_until(lambda: [each["type"] for each in link.receive()] == ["first"])
        yield channel, link, relay


FAILURE = json.dumps({"type": "failed", "failure": {"pickled": "of a command"}}).encode()
FORGERIES = {
    "a message": lambda seen: len(FAILURE).to_bytes(4, "big") + FAILURE,
    "a message with a tag": lambda seen: len(FAILURE).to_bytes(4, "big") + FAILURE + bytes(16),
    "a repeated record": lambda seen: seen["up"][68:],
    "a reflected record": lambda seen: seen["down"][64:],
    "the beginning of a record": lambda seen: seen["up"][68:100],
    "noise": lambda seen: bytes(200),
}


@pytest.mark.parametrize("relayed", PROTECTIONS, indirect=True)
@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_relay_cannot_speak_for_an_agent(relayed, forgery, caplog):
    channel, _, relay = relayed
    relay.inject("up", FORGERIES[forgery](relay.seen) + bytes(100))
    assert kinds_until(channel, "disconnected") == ["disconnected"]
    assert "has changed the messages of rank 0 @ h to the driver" in caplog.text


@pytest.mark.parametrize("relayed", PROTECTIONS, indirect=True)
@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_relay_cannot_speak_for_the_driver(relayed, forgery, caplog):
    channel, link, relay = relayed
    relay.inject("down", FORGERIES[forgery](relay.seen) + bytes(100))
    got = []
    assert wait_until(lambda: got.extend(link.receive()) or not link.is_open)
    assert got == []
    assert link.connect()  # and tells the driver
    assert kinds_until(channel, "connected") == ["disconnected", "connected"]
    assert "has sent messages to rank 0 @ h in the driver's name" in caplog.text


@pytest.mark.parametrize("protection", PROTECTIONS)
@pytest.mark.parametrize("position", [68, 72, 100, 120])
def test_a_changed_byte_is_noticed(open_channel, protection, position):
    """The hello is the first record; its length, its data and its tag are all protected."""

    def change(direction, data, passed):
        place = position - passed
        if direction == "up" and 0 <= place < len(data):
            return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        return data

    channel = open_channel(protection=protection)
    with (
        closing(Relay(channel.addresses[0], change)) as relay,
        closing(link_to(relay.address, protection=protection)) as link,
    ):
        link.connect()
        link.send({"type": "phase", "name": "train", "time": 0.0})
        with suppress(OSError):
            relay.inject("up", bytes(1000))  # the changed length may announce more
        assert wait_until(lambda: list(link.receive()) == [] and not link.is_open)
    assert channel.events.empty()
    check_serves(channel, protection=protection)


@pytest.mark.parametrize("protection", PROTECTIONS)
def test_a_changed_checkpoint_or_result_is_rejected(open_channel, tmp_path, protection, caplog):
    data = os.urandom(1 << 20)

    def change(direction, data, passed):
        return data[:-1] + bytes([data[-1] ^ 1]) if direction == "up" and passed > 100_000 else data

    channel = open_channel(protection=protection)
    with closing(Relay(channel.addresses[0], change)) as relay:
        transfer = CheckpointTransfer([relay.address], SECRET, 0, str(tmp_path), protection)
        transfer.put("fit0-00000000", io.BytesIO(data))
        transfer.close(10)
        assert "did not reach the driver" in transfer.warnings[0]
        with closing(link_to(relay.address, protection=protection)) as link:
            assert link.connect()
            assert not link.send_result(io.BytesIO(data), len(data))
            assert kinds_until(channel, "connected") == ["connected"]
        assert kinds_until(channel, "disconnected") == ["disconnected"]
    assert channel.kept.names() == []
    assert "has changed a commit of rank 0" in caplog.text
    assert "has changed a result of rank 0" in caplog.text


@pytest.mark.parametrize(("protection", "is_readable"), [("integrity", True), ("privacy", False)])
def test_what_can_be_read_on_the_way(open_channel, tmp_path, protection, is_readable):
    channel = open_channel(protection=protection)
    with closing(Relay(channel.addresses[0])) as relay:
        transfer = CheckpointTransfer([relay.address], SECRET, 0, str(tmp_path), protection)
        transfer.put("fit0-00000000", io.BytesIO(b"secret weights"))
        transfer.close(10)
        (file,) = transfer.fetch(lambda: None).values()
        with file, closing(link_to(relay.address, protection=protection)) as link:
            file.seek(0)
            assert file.read() == b"secret weights"
            assert link.connect()
            kinds_until(channel, "connected")
            link.send_lines("stdout", ["secret line"])
            assert link.send_result(io.BytesIO(b"secret value"), 12)
            channel.send(0, {"type": "stop", "reason": "secret reason"})
            assert wait_until(lambda: [each.get("reason") for each in link.receive()] == ["secret reason"])
        for direction, texts in {"up": ("weights", "line", "value"), "down": ("weights", "reason")}.items():
            for text in texts:
                assert (f"secret {text}".encode() in relay.seen[direction]) is is_readable
        assert SECRET not in relay.seen["up"] + relay.seen["down"]


def test_ends_with_different_protection_do_not_talk(open_channel):
    channel = open_channel(protection="privacy")
    with closing(link_to(channel.addresses[0], protection="integrity")) as link:
        link.connect()
        assert wait_until(lambda: list(link.receive()) == [] and not link.is_open)
    assert channel.events.empty()


def test_encryption_without_its_package_is_an_error(open_channel, monkeypatch):
    channel = open_channel()
    monkeypatch.setattr(sealing, "can_encrypt", lambda: False)
    with pytest.raises(EncryptionUnsupportedError, match=r"pip install .*\[encryption\]"):
        link_to(channel.addresses[0], protection="privacy").connect()


# Strangers.


def strangers(stack, channel, count):
    return [stack.enter_context(socket.create_connection(channel.addresses[0], timeout=10)) for _ in range(count)]


def test_five_hundred_wrong_answers_are_one_warning(open_channel, caplog):
    caplog.set_level(logging.WARNING)
    channel = open_channel(world_size=2)
    for _ in range(500):
        with socket.create_connection(channel.addresses[0], timeout=10) as sock:
            sock.sendall(bytes(68))
            with suppress(ConnectionResetError):
                while sock.recv(100):
                    pass
    assert len(caplog.records) == 1
    assert "does not hold the secret" in caplog.text
    check_serves(channel)


def test_a_rank_outside_of_the_group_is_rejected(open_channel):
    channel = open_channel(world_size=2)
    with closing(link_to(channel.addresses[0], rank=2)) as link:
        assert not link.connect()
    assert channel.events.empty()


def test_strangers_are_limited_in_number_and_the_oldest_leave_first(open_channel):
    channel = open_channel(world_size=4)
    limit = channel._doorway._limit
    assert limit < 200
    with ExitStack() as stack:
        idle = strangers(stack, channel, limit + 50)
        assert wait_until(lambda: len(channel._doorway) == limit)
        for sock in idle[:50]:
            sock.recv(32)
            assert sock.recv(1) == b""
        check_serves(channel)
        assert idle[-1].recv(32)
        idle[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            idle[-1].recv(1)
        assert threading.active_count() < 20


DRIVER = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from spark_tensorflow_distributor.runtime.driver.channel import Channel
channel = Channel(b"s" * 32, "127.0.0.1", ("127.0.0.1",), world_size=1000)
print(json.dumps(channel.addresses[0]), flush=True)
while True:
    rank, message = channel.events.get()
    if message["type"] == "phase":
        channel.send(rank, {"type": "answer"})
"""


def test_the_driver_survives_the_end_of_its_descriptors():
    """Strangers take them all at first, then its own workers do."""
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = tuple(json.loads(driver.stdout.readline()))
        with ExitStack() as stack:
            for _ in range(400):
                stack.enter_context(socket.create_connection(address, timeout=10))
            with closing(link_to(address)) as link:
                assert wait_until(link.connect, 10)
                assert_answers(link)
        links = [link_to(address, rank) for rank in range(300)]  # more than there are descriptors
        with ExitStack() as stack:
            for link in links:
                stack.callback(link.close, 0)
            accepted = [link for link in links[:200] if link.connect()]
            assert len(accepted) == 200
            late = [threading.Thread(target=link.connect) for link in links[200:]]
            for thread in late:
                thread.start()
            assert_answers(links[0])  # although others are waiting in vain
            for link in links[:100]:
                link.close()
            for thread in late:
                thread.join(30)
            assert wait_until(lambda: links[-1].is_open or links[-1].connect(), 20)
            assert_answers(links[-1])
    finally:
        driver.send_signal(signal.SIGKILL)
        _, errors = driver.communicate()
    assert errors.count("No more connections to the driver's channel can be accepted") == 1
    assert "Traceback" not in errors


def assert_answers(link):
    link.send({"type": "phase", "name": "train", "time": 0.0})
    assert wait_until(lambda: [each["type"] for each in link.receive()] == ["answer"], 10)


# Peers that do not read.


def test_a_peer_that_does_not_read_delays_nobody_and_is_named(open_channel, monkeypatch):
    monkeypatch.setattr("spark_tensorflow_distributor.runtime.driver.channel._BLOCKED_SECONDS", 0.5)
    channel = open_channel(world_size=4)
    deaf, _ = open_connection(channel.addresses, SECRET, HELLO)
    with deaf, closing(link_to(channel.addresses[0], rank=1)) as link:
        assert link.connect()
        for _ in range(2):
            assert channel.events.get(timeout=5)[1]["type"] == "connected"
        started = time.monotonic()
        for _ in range(30):
            channel.send(0, {"type": "passed", "data": os.urandom(300_000).hex()})
        channel.send(None, {"type": "stop", "reason": "x"})
        assert time.monotonic() - started < 3  # it used to wait for the peer
        assert wait_until(lambda: [each["type"] for each in link.receive()] == ["stop"])
        rank, message = channel.events.get(timeout=5)
        assert (rank, message["type"]) == (0, "blocked")
        deaf.send({"type": "alive"})  # it still speaks
        received = [deaf.receive()["type"] for _ in range(31)]
        assert received[-1] == "stop"
        assert "unblocked" in kinds_until(channel, "unblocked")


def test_what_waits_for_a_peer_is_limited(open_channel, monkeypatch):
    monkeypatch.setattr("spark_tensorflow_distributor.runtime.driver.channel._MAX_WAITING", 10 << 20)
    channel = open_channel(world_size=4)
    deaf, _ = open_connection(channel.addresses, SECRET, HELLO)
    with deaf:
        assert channel.events.get(timeout=5)[1]["type"] == "connected"
        data = os.urandom(1 << 20).hex()
        for _ in range(40):
            channel.send(0, {"type": "passed", "data": data})
        assert channel.events.get(timeout=5) == (0, {"type": "disconnected"})
        assert not channel._peers


# Load.


def test_lines_wait_for_everything_else(open_channel):
    channel = open_channel(world_size=2)
    with closing(link_to(channel.addresses[0])) as link:
        link.connect()
        for number in range(100):
            link.send_lines("stdout", [str(number)])
        link.send({"type": "done"})
        assert kinds_until(channel, "connected") == ["connected"]
        assert wait_until(lambda: len(channel.events._lines) == 100)
        assert wait_until(lambda: bool(channel.events._urgent))
        assert channel.events.get()[1]["type"] == "done"
        lines = [channel.events.get()[1]["lines"] for _ in range(100)]
        assert lines == [[str(number)] for number in range(100)]


def test_a_fault_in_the_channel_is_reported(open_channel, monkeypatch, caplog):
    channel = open_channel(world_size=2)
    monkeypatch.setattr(channel, "_expire", lambda now: 1 // 0)
    rank, message = channel.events.get(timeout=5)
    assert (rank, message["type"]) == (-1, "broken")
    assert "ZeroDivisionError" in caplog.text
