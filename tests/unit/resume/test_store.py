"""Where checkpoints are kept: folders, what stays in them, and what a later run makes of them."""

import os

import pytest

from spark_tensorflow_distributor import CheckpointError
from spark_tensorflow_distributor.resume import filesystems, snapshot, store
from spark_tensorflow_distributor.resume.names import lane_of, outdated


def put(folder, name, state=None):
    folder.put(name, lambda file: snapshot.write(file, {"name": name}, state))


def test_two_of_the_last_fit_are_kept_and_one_of_those_before():
    names = ["fit0-00000001", "fit0-00000003", "fit0-00000002", "fit10-00000001", "own-00000001"]
    assert outdated(names) == ["fit0-00000001", "fit0-00000002"]
    assert outdated(names[:3]) == ["fit0-00000001"]
    assert outdated(["fit9-00000001", "fit9-00000002", "fit10-00000000"]) == ["fit9-00000001"]
    assert lane_of("fit10-00000001") == "fit10"


def test_a_folder_keeps_the_last_two(tmp_path):
    folder = store.Folder(str(tmp_path / "made" / "for" / "it"), "run")
    for number in range(4):
        put(folder, f"fit0-{number:08d}", number)
    assert sorted(folder.names()) == ["fit0-00000002", "fit0-00000003"]
    name, facts, state = store.latest(folder, "fit0", print)
    assert (name, facts["name"], state) == ("fit0-00000003", "fit0-00000003", 3)
    assert store.latest(folder, "fit1", print) is None


def test_a_damaged_one_is_left_out_for_the_one_before(tmp_path):
    folder = store.Folder(str(tmp_path), "run")
    put(folder, "fit0-00000000", "old")
    put(folder, "fit0-00000001", "new")
    newest = tmp_path / "stfd-fit0-00000001.npz"
    newest.write_bytes(newest.read_bytes()[:-10])
    warnings = []
    assert store.latest(folder, "fit0", warnings.append)[2] == "old"
    assert "stfd-fit0-00000001.npz" in warnings[0]


def test_foreign_files_are_left_alone(tmp_path):
    (tmp_path / "model.keras").write_text("mine")
    (tmp_path / "stfd-notes.txt").write_text("mine")
    folder = store.Folder(str(tmp_path), "run")
    assert folder.names() == []
    put(folder, "fit0-00000000")
    folder.finish()
    put(store.Folder(str(tmp_path), "another"), "fit0-00000000")
    assert (tmp_path / "model.keras").read_text() == "mine"


def test_a_write_that_fails_leaves_nothing(tmp_path):
    folder = store.Folder(str(tmp_path), "run")
    put(folder, "fit0-00000000", "old")

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        folder.put("fit0-00000001", fail)
    assert os.listdir(tmp_path) == ["stfd-fit0-00000000.npz"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".stfd-abc").write_text("half")
    put(store.Folder(str(tmp_path), "run"), "fit0-00000000")
    assert os.listdir(tmp_path) == ["stfd-fit0-00000000.npz"]


def test_a_run_that_was_stopped_is_taken_up_and_one_that_ended_well_is_not(tmp_path):
    first = store.Folder(str(tmp_path), "first")
    put(first, "fit0-00000004")
    assert store.Folder(str(tmp_path), "second").names() == ["fit0-00000004"]
    first.finish()
    assert store.Folder(str(tmp_path), "first").names() == ["fit0-00000004"]  # a relaunch of the same run
    second = store.Folder(str(tmp_path), "second")
    assert second.names() == []
    put(second, "fit0-00000000")
    assert sorted(os.listdir(tmp_path)) == ["stfd-fit0-00000000.npz"]
    assert second.names() == ["fit0-00000000"]


def test_a_place_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"checkpoint_dir=.*cannot be made"):
        store.Folder(str(tmp_path / "file" / "below"), "run")


def test_fsspec_reaches_other_places():
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    files = filesystems.FsspecFiles(system, "/checkpoints")
    files.make()
    files.write("stfd-fit0-00000000.npz", lambda file: snapshot.write(file, {"a": 1}, [1]))
    assert files.list() == ["stfd-fit0-00000000.npz"]
    with files.read("stfd-fit0-00000000.npz") as file:
        assert snapshot.read(file)[1] == [1]
    files.remove("stfd-fit0-00000000.npz")
    assert files.list() == []
