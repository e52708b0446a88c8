"""The files below a trainer's log_dir, followed by its agent and written by the driver."""

import os
import random
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from spark_tensorflow_distributor.runtime.agent.log_follower import BYTES_PER_SECOND, LogFollower
from spark_tensorflow_distributor.runtime.driver.log_dir import LogDirectory
from spark_tensorflow_distributor.runtime.log_pieces import PIECE_BYTES, LogPiece, LogReceipt


class Wire:
    """A follower and a driver's directory, with a clock that stands still unless told."""

    def __init__(self, tmp_path):
        self.now = 100.0
        self.source, self.target = tmp_path / "worker", tmp_path / "driver"
        self.source.mkdir()
        self.directory = LogDirectory(str(self.target))
        self.follower = LogFollower(str(self.source), lambda: self.now)
        self.pieces = []

    def close(self):
        self.directory.close()

    def step(self):
        """Send one piece if one is due; return whether one was."""
        piece = self.follower.next_piece()
        if piece is None:
            return False
        piece = LogPiece.from_message(piece.to_message())
        self.pieces.append(piece)
        size = self.directory.write(0, 0, piece)
        receipt = LogReceipt(piece.path, piece.offset, size)
        self.follower.on_receipt(LogReceipt.from_message(receipt.to_message()))
        return True

    def settle(self, seconds=2.0):
        """Let time pass until a second look has sent everything."""
        end = self.now + seconds
        while self.now < end:
            if not self.step():
                self.now += max(0.01, self.follower.seconds_until_due())

    def finish(self):
        self.follower.finish()
        for _ in range(10_000):
            if not self.step():
                break
        assert self.follower.is_complete

    def assert_equal(self):
        assert contents(self.target) == contents(self.source)


def contents(folder: Path):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


@pytest.fixture
def wire(tmp_path):
    with closing(Wire(tmp_path)) as made:
        yield made


def test_what_is_appended_is_all_that_is_sent(wire):
    path = wire.source / "train" / "events"
    path.parent.mkdir()
    path.write_bytes(b"first")
    wire.settle()
    with open(path, "ab") as file:
        file.write(b"second")
    wire.settle()
    assert [(p.offset, p.data) for p in wire.pieces] == [(0, b"first"), (5, b"second")]
    wire.assert_equal()


def test_an_empty_file_appears_and_a_removed_one_disappears(wire):
    (wire.source / "marker").touch()
    (wire.source / "gone").write_text("x")
    wire.settle()
    wire.assert_equal()
    (wire.source / "gone").unlink()
    wire.settle()
    assert contents(wire.target) == {"marker": b""}


@pytest.mark.parametrize("new", [b"{step: 2}", b"{step: 10000}", b"{}", b""])
def test_a_file_that_is_written_again_is_replaced(wire, new):
    path = wire.source / "state.json"
    path.write_bytes(b"{step: 1}")
    wire.settle()
    path.write_bytes(new)  # in place: the same inode
    wire.settle()
    wire.assert_equal()


def test_a_file_that_is_replaced_by_another_is_sent_again(wire):
    (wire.source / "best").write_bytes(b"a" * 100_000)
    wire.settle()
    (wire.source / "new").write_bytes(b"a" * 100_000 + b"b")
    os.replace(wire.source / "new", wire.source / "best")
    wire.settle()
    assert wire.pieces[-1].offset == 0
    wire.assert_equal()


def test_a_change_inside_a_large_file_is_found_at_the_end(wire):
    path = wire.source / "mapped"
    path.write_bytes(b"a" * 1_000_000)
    wire.settle()
    before = path.stat()
    with open(path, "r+b") as file:
        file.write(b"b")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    wire.settle()
    assert contents(wire.target) != contents(wire.source)
    wire.finish()
    wire.assert_equal()


def test_one_piece_is_in_flight_and_a_lost_one_is_sent_again(wire):
    (wire.source / "a").write_bytes(b"1")
    (wire.source / "b").write_bytes(b"2")
    piece = wire.follower.next_piece()
    assert wire.follower.next_piece() is None
    wire.now += 5
    assert wire.follower.next_piece() is None
    wire.follower.on_reconnected()
    assert wire.follower.next_piece() is piece
    assert wire.follower.next_piece() is None
    for _ in range(2):  # both arrived after all
        size = wire.directory.write(0, 0, piece)
        wire.follower.on_receipt(LogReceipt(piece.path, piece.offset, size))
    wire.settle()
    wire.assert_equal()
    assert len(wire.pieces) == 1


def test_the_rate_is_limited_until_the_trainer_has_ended(wire):
    (wire.source / "profile").write_bytes(os.urandom(20 * PIECE_BYTES))
    started = wire.now
    while wire.follower.missing_bytes or not wire.pieces:
        if not wire.step():
            wire.now += max(0.001, wire.follower.seconds_until_due())
    assert wire.now - started >= 19 * PIECE_BYTES / BYTES_PER_SECOND
    (wire.source / "last").write_bytes(os.urandom(20 * PIECE_BYTES))
    wire.finish()  # the clock stands still
    wire.assert_equal()


def test_large_files_do_not_delay_small_ones(wire):
    (wire.source / "large").write_bytes(b"x" * (10 * PIECE_BYTES))
    (wire.source / "small").write_bytes(b"y")
    for _ in range(3):
        wire.now += 1
        wire.step()
    assert (wire.target / "small").exists()


def test_a_copy_that_is_changed_on_the_driver_is_sent_again_but_not_for_ever(wire):
    path = wire.source / "log"
    path.write_bytes(b"1")
    wire.settle()
    for n in range(10):
        (wire.target / "log").write_bytes(b"shorter or longer")
        with open(path, "ab") as file:
            file.write(b"%d" % n)
        wire.settle()
    assert "another program" in wire.follower.error
    assert len(wire.pieces) < 20


def test_a_refused_file_is_tried_again_at_the_end(wire):
    (wire.source / "log").write_bytes(b"1")
    piece = wire.follower.next_piece()
    wire.follower.on_receipt(LogReceipt(piece.path, 0, 0, "disk full"))
    assert wire.follower.error == "disk full"
    wire.settle()
    assert wire.pieces == []
    wire.finish()
    wire.assert_equal()


def test_links_are_not_followed(wire, tmp_path):
    (tmp_path / "secret").write_text("s")
    os.symlink(tmp_path / "secret", wire.source / "file")
    os.symlink(tmp_path, wire.source / "folder")
    os.mkfifo(wire.source / "pipe")
    wire.finish()
    assert contents(wire.target) == {}


def test_names_that_are_not_text_survive(wire):
    with open(os.fsencode(wire.source) + b"/\xff\xfe", "wb") as file:
        file.write(b"x")
    wire.finish()
    assert os.listdir(os.fsencode(wire.target)) == [b"\xff\xfe"]


@pytest.mark.parametrize("seed", range(20))
def test_any_sequence_of_changes_arrives_whole(wire, seed):
    draw = random.Random(seed)
    names = ["a", "b", "sub/c", "sub/deep/d"]

    def change():
        path = wire.source / draw.choice(names)
        kind = draw.choice(["append", "append", "append", "write", "patch", "move", "remove", "remove_all"])
        data = draw.randbytes(draw.choice([0, 1, 100, 70_000, 600_000]))
        if kind in ("append", "write", "patch"):
            path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "append":
            with open(path, "ab") as file:
                file.write(data)
        elif kind == "write":
            path.write_bytes(data)
        elif kind == "patch" and path.exists():
            with open(path, "r+b") as file:
                file.seek(draw.randrange(path.stat().st_size + 1))
                file.write(data)
        elif kind == "move" and path.exists():
            os.replace(path, wire.source / draw.choice("ab"))
        elif kind == "remove":
            path.unlink(missing_ok=True)
        elif kind == "remove_all":
            shutil.rmtree(wire.source / "sub", ignore_errors=True)

    for _ in range(60):
        change()
        for _ in range(draw.randrange(4)):
            wire.step()
        wire.now += draw.random()
        if draw.random() < 0.05:
            wire.follower.on_reconnected()
    wire.finish()
    wire.assert_equal()
