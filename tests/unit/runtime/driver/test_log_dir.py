"""The driver's log_dir: names from several ranks and attempts, and what must not leave it."""

import logging
import os
import shutil
import threading
from contextlib import closing
from pathlib import Path

import pytest

from spark_tensorflow_distributor import ConfigurationError
from spark_tensorflow_distributor.runtime.driver.log_dir import LogDirectory, LogWriter
from spark_tensorflow_distributor.runtime.log_pieces import LogPiece, LogReceipt


@pytest.fixture
def logs(tmp_path):
    with closing(LogDirectory(str(tmp_path / "new" / "logs"))) as made:
        yield made


def write(logs, path, data, *, rank=0, attempt=0, offset=0):
    return logs.write(rank, attempt, LogPiece(path, offset, data))


def files(logs):
    root = Path(logs.root)
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_pieces_make_a_file(logs):
    assert write(logs, "train/events", b"one") == 3
    assert write(logs, "train/events", b"two", offset=3) == 6
    assert write(logs, "train/events", b"two", offset=3) == 6  # sent twice
    assert write(logs, "train/events", b"?", offset=9) == 6  # does not continue it
    assert files(logs) == {"train/events": b"onetwo"}


def test_readers_of_a_replaced_file_keep_the_old_one(logs):
    write(logs, "state", b"old")
    with open(os.path.join(logs.root, "state"), "rb") as reader:
        write(logs, "state", b"n")
        assert reader.read() == b"old"
    assert files(logs) == {"state": b"n"}


@pytest.mark.parametrize(
    "path", ["../x", "/etc/x", "a/../../x", "..", ".", "", "a//b", "a/", "a/\0", "./a", "/", "a/./b"]
)
def test_a_path_that_leaves_the_directory_is_refused(logs, path, tmp_path):
    with pytest.raises(PermissionError, match="not a path below log_dir"):
        write(logs, path, b"x")
    assert files(logs) == {}
    assert [each.name for each in tmp_path.iterdir()] == ["new"]


def test_links_are_not_followed(logs, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"safe")
    os.symlink(outside, os.path.join(logs.root, "folder"))
    os.symlink(outside / "file", os.path.join(logs.root, "link"))
    with pytest.raises(OSError):
        write(logs, "folder/file", b"x")
    assert write(logs, "link", b"x") == 1  # replaces the link
    os.unlink(os.path.join(logs.root, "link"))
    os.symlink(outside / "file", os.path.join(logs.root, "link"))
    with pytest.raises(OSError):
        write(logs, "link", b"more", offset=1)
    assert (outside / "file").read_bytes() == b"safe"
    assert [each.name for each in outside.iterdir()] == ["file"]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_ranks_that_use_the_same_name_do_not_overwrite_each_other(logs, order):
    for rank in order:
        write(logs, "log", b"%d" % rank, rank=rank)
    for rank in order:
        write(logs, "log", b"+", rank=rank, offset=1)
    assert files(logs) == {"log": b"0+", "log.rank1": b"1+", "log.rank2": b"2+"}


def test_a_name_that_looks_like_a_moved_one_is_left_alone(logs):
    write(logs, "log.rank1", b"mine", rank=0)
    write(logs, "log", b"0", rank=0)
    write(logs, "log", b"1", rank=1)
    assert files(logs) == {"log.rank1": b"mine", "log": b"0", "log.rank1_": b"1"}


def test_a_later_attempt_keeps_what_an_earlier_one_wrote(logs):
    write(logs, "log", b"first", attempt=0)
    write(logs, "log", b"1", rank=1, attempt=0)
    write(logs, "log", b"second", attempt=1)
    write(logs, "log", b"1", rank=1, attempt=1)
    assert files(logs) == {"log": b"second", "log.attempt0": b"first", "log.rank1": b"1", "log.rank1_": b"1"}


def test_a_worker_removes_only_its_own_files(logs):
    write(logs, "log", b"0", rank=0)
    write(logs, "log", b"1", rank=1)
    logs.write(1, 0, LogPiece("log", data=None))
    logs.write(1, 0, LogPiece("log", data=None))
    write(logs, "folder/log", b"1", rank=1)
    shutil.rmtree(os.path.join(logs.root, "folder"))
    logs.write(1, 0, LogPiece("folder/log", data=None))
    assert files(logs) == {"log": b"0"}


def test_a_directory_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"log_dir is .*file"):
        LogDirectory(str(tmp_path / "file"))


def test_a_malformed_piece_does_not_stop_the_others(tmp_path, caplog):
    answers = []
    with closing(LogWriter(LogDirectory(tmp_path), 0, lambda rank, message: answers.append(rank))) as writer:
        writer.start()
        writer.put(0, {"type": "log_piece"})
        writer.put(1, LogPiece("good", 0, b"x").to_message())
    assert answers == [1]
    assert "Rank 0 sent a malformed piece of a log file" in caplog.text


def test_a_refused_piece_is_answered_and_logged_once(logs, caplog):
    answers, both = [], threading.Event()

    def answer(rank, message):
        answers.append((rank, LogReceipt.from_message(message)))
        if len(answers) == 3:
            both.set()

    with closing(LogWriter(logs, 0, answer)) as writer:
        writer.start()
        writer.put(1, LogPiece("../x", 0, b"x").to_message())
        writer.put(1, LogPiece("\ud800", 0, b"x").to_message())
        writer.put(2, LogPiece("good", 0, b"x").to_message())
        assert both.wait(5)
    assert [(rank, receipt.size, bool(receipt.error)) for rank, receipt in answers] == [
        (1, 0, True),
        (1, 0, True),
        (2, 1, False),
    ]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "../x of rank 1 cannot be written" in caplog.text
