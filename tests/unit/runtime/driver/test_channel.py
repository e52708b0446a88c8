"""The driver's channel is closed to strangers, and takes checkpoints from its own agents."""

import io
import random
import socket
import threading
import time
from contextlib import closing, suppress

import pytest

from helpers import wait_until
from spark_tensorflow_distributor.resume.driver_store import DriverCheckpointStore
from spark_tensorflow_distributor.runtime.agent.checkpoints import CheckpointTransfer
from spark_tensorflow_distributor.runtime.agent.link import DriverLink, open_connection
from spark_tensorflow_distributor.runtime.driver.channel import Channel
from spark_tensorflow_distributor.runtime.wire import frame

SECRET = b"s" * 32


@pytest.fixture
def channel():
    with (
        closing(DriverCheckpointStore()) as commits,
        closing(Channel(SECRET, "127.0.0.1", ("127.0.0.1",), checkpoints=commits)) as made,
    ):
        made.kept = commits
        yield made


def link(channel, rank=0, secret=SECRET):
    made = DriverLink(channel.addresses, secret, {"type": "hello", "rank": rank, "host": "h"})
    return made


def check_serves(channel, rank=0):
    """A worker of the run is served at once."""
    started = time.monotonic()
    own = link(channel, rank)
    assert own.connect()
    own.send({"type": "log", "stream": "stdout", "lines": ["x"], "dropped": 0})
    assert channel.events.get(timeout=2)[1]["type"] == "connected"
    assert channel.events.get(timeout=2)[1]["lines"] == ["x"]
    own.close()
    assert channel.events.get(timeout=2)[1]["type"] == "disconnected"
    assert time.monotonic() - started < 2


def stranger(channel):
    return socket.create_connection(channel.addresses[0], timeout=10)


def ended(sock):
    """Whether the other end has closed, and sent nothing more."""
    try:
        return sock.recv(1000) == b""
    except ConnectionResetError:
        return True


def test_noise_is_answered_with_nothing(channel):
    chance = random.Random(5)
    for size in [0, 1, 31, 63, 64, 65, 1000, 100_000]:
        with stranger(channel) as noise:
            challenge = noise.recv(32)
            assert len(challenge) == 32
            with suppress(OSError):  # it may be closed before all is sent
                noise.sendall(chance.randbytes(size))
                noise.shutdown(socket.SHUT_WR)
            assert ended(noise)  # not a byte of what the driver would prove itself with
    assert channel.events.empty()
    check_serves(channel)


def test_who_holds_another_secret_is_refused(channel):
    assert not link(channel, secret=b"x" * 32).connect()
    assert channel.events.empty()
    check_serves(channel)


def test_an_answer_cannot_be_sent_back(channel):
    """A stranger that passes one end's challenge on to the other learns nothing that it could use."""
    with stranger(channel) as one, stranger(channel) as two:
        challenge = one.recv(32)
        two.recv(32)
        two.sendall(bytes(32) + challenge)
        assert two.recv(100) == b""  # the driver signs nothing for who has not signed first
    check_serves(channel)


def test_many_who_say_nothing_hold_nobody_up(channel):
    idle = [stranger(channel) for _ in range(200)]
    try:
        check_serves(channel)
    finally:
        for each in idle:
            each.close()


def test_who_sends_a_byte_now_and_then_is_not_waited_for(channel, monkeypatch):
    monkeypatch.setattr("spark_tensorflow_distributor.runtime.wire.HANDSHAKE_SECONDS", 0.5)
    started = time.monotonic()
    with stranger(channel) as slow:
        slow.recv(32)
        with suppress(OSError):  # how it learns that it is not waited for
            while time.monotonic() - started < 5:
                slow.sendall(b"x")
                time.sleep(0.1)
    assert time.monotonic() - started < 4
    check_serves(channel)


@pytest.mark.parametrize("size", [1 << 31, (64 << 20) + 1])
def test_an_oversized_message_ends_its_own_connection_alone(channel, size):
    other = link(channel, 1)
    assert other.connect()
    assert channel.events.get(timeout=2)[0] == 1
    sock, _ = open_connection(channel.addresses, SECRET, {"type": "hello", "rank": 0, "host": "h"})
    with sock:
        sock.sendall(size.to_bytes(4, "big") + b"{}")
        sock.settimeout(5)
        assert ended(sock)
    kinds = [channel.events.get(timeout=2) for _ in range(2)]
    assert [(rank, message["type"]) for rank, message in kinds] == [(0, "connected"), (0, "disconnected")]
    other.send({"type": "phase", "name": "train", "time": 0.0})
    assert channel.events.get(timeout=2) == (1, {"type": "phase", "name": "train", "time": 0.0})
    other.close()


@pytest.mark.parametrize("body", [b"not json", b"[1]", b'{"no": "type"}', b'{"type": "result"}'])
def test_a_malformed_message_ends_its_own_connection_alone(channel, body):
    sock, _ = open_connection(channel.addresses, SECRET, {"type": "hello", "rank": 0, "host": "h"})
    with sock:
        sock.sendall(len(body).to_bytes(4, "big") + body)
        sock.settimeout(5)
        assert ended(sock)
    assert [channel.events.get(timeout=2)[1]["type"] for _ in range(2)] == ["connected", "disconnected"]
    check_serves(channel)


def test_checkpoints_come_and_go(channel, tmp_path):
    transfer = CheckpointTransfer(channel.addresses, SECRET, 0, str(tmp_path))
    assert transfer.fetch(lambda: None) == {}
    for number, data in enumerate([b"a" * 10, b"b" * (3 << 20), b""]):
        transfer.put(f"fit0-{number:08d}", io.BytesIO(data))
        transfer.close(5)
        assert channel.events.get(timeout=2)[1] == {
            "type": "committed",
            "name": f"fit0-{number:08d}",
            "bytes": len(data),
        }
    transfer.put("manual-00000000", io.BytesIO(b"mine"))
    transfer.close(5)
    fetched = contents(transfer.fetch(lambda: None))
    assert fetched == {"fit0-00000001": b"b" * (3 << 20), "fit0-00000002": b"", "manual-00000000": b"mine"}
    other = CheckpointTransfer(channel.addresses, SECRET, 1, str(tmp_path))
    assert contents(other.fetch(lambda: None)) == {"manual-00000000": b"mine"}  # rank 0 passes the rest on
    assert not transfer.warnings


def contents(files):
    found = {}
    for name, file in files.items():
        with file:
            file.seek(0)
            found[name] = file.read()
    return found


def test_half_a_checkpoint_is_none(channel):
    hello = {"type": "commit", "rank": 0, "name": "fit0-00000000", "size": 1000}
    sock, _ = open_connection(channel.addresses, SECRET, hello)
    with sock:
        sock.sendall(b"x" * 999)
    assert not wait_until(channel.kept.names, 0.5)
    assert channel.events.empty()


def test_a_full_disk_at_the_driver_is_told(channel, tmp_path, monkeypatch):
    def full(name, pieces):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(channel.kept, "put", full)
    transfer = CheckpointTransfer(channel.addresses, SECRET, 0, str(tmp_path))
    transfer.put("fit0-00000000", io.BytesIO(b"x"))
    transfer.close(5)
    assert "No space left on device" in transfer.warnings[0]


def test_a_driver_that_is_gone_is_told(channel, tmp_path):
    channel.close()
    transfer = CheckpointTransfer(channel.addresses, SECRET, 0, str(tmp_path))
    transfer.put("fit0-00000000", io.BytesIO(b"x"))
    transfer.close(10)
    assert "cannot be reached" in transfer.warnings[0]


def test_closing_does_not_wait_for_who_is_idle(channel):
    hello = {"type": "commit", "rank": 0, "name": "n", "size": 5}
    with stranger(channel), open_connection(channel.addresses, SECRET, hello)[0]:
        started = time.monotonic()
        channel.close()
        assert time.monotonic() - started < 3
    assert not [each for each in threading.enumerate() if each.name == "spark-tensorflow-channel"]


def test_a_frame_is_what_it_says():
    assert frame({"a": 1}) == b'\x00\x00\x00\x08{"a": 1}'
