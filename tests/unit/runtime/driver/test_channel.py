"""The driver's channel rejects unauthenticated peers, and accepts checkpoints from its agents."""

import io
import random
import socket
import threading
import time
import zlib
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
    """Check that a worker of the run is served at once."""
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
    """Return whether the other end has closed without sending more."""
    try:
        return sock.recv(1000) == b""
    except ConnectionResetError:
        return True


def test_a_worker_announces_a_checkpoint_that_it_has_saved_in_a_folder(channel):
    own = link(channel)
    assert own.connect()
    own.send({"type": "committed", "name": "fit0-00000000"})
    own.send({"type": "phase", "name": "train", "time": 0.0})
    assert [channel.events.get(timeout=2)[1]["type"] for _ in range(3)] == ["connected", "committed", "phase"]
    own.close()


def test_invalid_data_gets_no_answer(channel):
    chance = random.Random(5)
    for size in [0, 1, 31, 63, 64, 65, 1000, 100_000]:
        with stranger(channel) as noise:
            challenge = noise.recv(32)
            assert len(challenge) == 32
            with suppress(OSError):  # it may be closed before everything is sent
                noise.sendall(chance.randbytes(size))
                noise.shutdown(socket.SHUT_WR)
            assert ended(noise)  # not a byte of the driver's proof
    assert channel.events.empty()
    check_serves(channel)


def test_a_peer_with_another_secret_is_rejected(channel):
    assert not link(channel, secret=b"x" * 32).connect()
    assert channel.events.empty()
    check_serves(channel)


def test_a_response_cannot_be_reflected(channel):
    """An attacker that relays one end's challenge to the other learns nothing useful."""
    with stranger(channel) as one, stranger(channel) as two:
        challenge = one.recv(32)
        two.recv(32)
        two.sendall(bytes(32) + challenge)
        assert two.recv(100) == b""  # the driver signs nothing before its peer has
    check_serves(channel)


def test_silent_connections_do_not_block_workers(channel):
    idle = [stranger(channel) for _ in range(200)]
    try:
        check_serves(channel)
    finally:
        for each in idle:
            each.close()


def test_a_slow_handshake_times_out(channel, monkeypatch):
    monkeypatch.setattr("spark_tensorflow_distributor.transport.doorway.STRANGER_SECONDS", 0.5)
    started = time.monotonic()
    with stranger(channel) as slow:
        slow.recv(32)
        with suppress(OSError):  # fails once the driver has closed the connection
            while time.monotonic() - started < 5:
                slow.sendall(b"x")
                time.sleep(0.1)
    assert time.monotonic() - started < 4
    check_serves(channel)


@pytest.mark.parametrize("size", [1 << 31, (64 << 20) + 1])
def test_an_oversized_message_closes_only_its_own_connection(channel, size):
    other = link(channel, 1)
    assert other.connect()
    assert channel.events.get(timeout=2)[0] == 1
    connection, _ = open_connection(channel.addresses, SECRET, {"type": "hello", "rank": 0, "host": "h"})
    with connection:
        connection.socket.sendall(size.to_bytes(4, "big") + b"{}")
        assert ended(connection.socket)
    kinds = [channel.events.get(timeout=2) for _ in range(2)]
    assert [(rank, message["type"]) for rank, message in kinds] == [(0, "connected"), (0, "disconnected")]
    other.send({"type": "phase", "name": "train", "time": 0.0})
    assert channel.events.get(timeout=2) == (1, {"type": "phase", "name": "train", "time": 0.0})
    other.close()


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"[1]",
        b'{"no": "type"}',
        b'{"type": "result"}',
        b'{"type": "log"}',
        b'{"type": "log", "lines": [1]}',
        b'{"type": "job_ended"}',
        b"z",
        b"zrubbish",
        b"z" + zlib.compress(bytes(65 << 20)),
    ],
    ids=lambda body: body[:30].decode(errors="replace"),
)
def test_a_malformed_message_closes_only_its_own_connection(channel, body):
    connection, _ = open_connection(channel.addresses, SECRET, {"type": "hello", "rank": 0, "host": "h"})
    with connection:
        connection.send_bytes([body])
        assert ended(connection.socket)
    assert [channel.events.get(timeout=2)[1]["type"] for _ in range(2)] == ["connected", "disconnected"]
    check_serves(channel)


def test_checkpoints_are_stored_and_fetched(channel, tmp_path):
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
    assert contents(other.fetch(lambda: None)) == {"manual-00000000": b"mine"}  # rank 0 broadcasts the others
    assert not transfer.warnings


def contents(files):
    found = {}
    for name, file in files.items():
        with file:
            file.seek(0)
            found[name] = file.read()
    return found


def test_a_partial_checkpoint_is_discarded(channel):
    hello = {"type": "commit", "rank": 0, "name": "fit0-00000000", "size": 1000}
    connection, _ = open_connection(channel.addresses, SECRET, hello)
    with connection:
        connection.send_bytes([b"x" * 999])
    assert not wait_until(channel.kept.names, 0.5)
    assert channel.events.empty()


def test_a_full_disk_on_the_driver_is_reported(channel, tmp_path, monkeypatch):
    def full(name, pieces):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(channel.kept, "put", full)
    transfer = CheckpointTransfer(channel.addresses, SECRET, 0, str(tmp_path))
    transfer.put("fit0-00000000", io.BytesIO(b"x"))
    transfer.close(5)
    assert "No space left on device" in transfer.warnings[0]


def test_an_unreachable_driver_is_reported(channel, tmp_path):
    channel.close()
    transfer = CheckpointTransfer(channel.addresses, SECRET, 0, str(tmp_path))
    transfer.put("fit0-00000000", io.BytesIO(b"x"))
    transfer.close(10)
    assert "cannot be reached" in transfer.warnings[0]


def test_closing_does_not_wait_for_idle_connections(channel):
    hello = {"type": "commit", "rank": 0, "name": "n", "size": 5}
    with stranger(channel), open_connection(channel.addresses, SECRET, hello)[0]:
        started = time.monotonic()
        channel.close()
        assert time.monotonic() - started < 3
    assert not [each for each in threading.enumerate() if each.name.startswith("spark-tensorflow")]


def test_frame_format():
    assert frame({"a": 1}) == b'\x00\x00\x00\x08{"a": 1}'
