"""Where checkpoints are kept, which are deleted, and which a later run uses."""

import os

import pytest

from spark_tensorflow_distributor import CheckpointError
from spark_tensorflow_distributor.resume import filesystems, snapshot, store
from spark_tensorflow_distributor.resume.names import lane_of, outdated
from spark_tensorflow_distributor.resume.settings import CheckpointSettings


def put(folder, name, state=None):
    folder.put(name, lambda file: snapshot.write(file, {"name": name}, state))


def newest_state(folder, warnings):
    found = store.newest_checkpoint(folder, "fit0", snapshot.read, warnings.append)
    return found and found.content[1]


def test_the_last_two_of_the_last_fit_and_one_of_earlier_fits_are_kept():
    names = ["fit0-00000001", "fit0-00000003", "fit0-00000002", "fit10-00000001", "manual-00000001"]
    assert outdated(names) == ["fit0-00000001", "fit0-00000002"]
    assert outdated(names[:3]) == ["fit0-00000001"]
    assert outdated(["fit9-00000001", "fit9-00000002", "fit10-00000000"]) == ["fit9-00000001"]
    assert lane_of("fit10-00000001") == "fit10"


def test_a_folder_keeps_the_last_two(tmp_path):
    folder = store.FolderStore(str(tmp_path / "made" / "for" / "it"), "run")
    for number in range(4):
        put(folder, f"fit0-{number:08d}", number)
    assert sorted(folder.names()) == ["fit0-00000002", "fit0-00000003"]
    found = store.newest_checkpoint(folder, "fit0", snapshot.read, print)
    assert (found.name, found.content[0]["name"], found.content[1]) == ("fit0-00000003", "fit0-00000003", 3)
    assert store.newest_checkpoint(folder, "fit1", snapshot.read, print) is None


def test_a_damaged_checkpoint_is_skipped(tmp_path):
    folder = store.FolderStore(str(tmp_path), "run")
    put(folder, "fit0-00000000", "old")
    put(folder, "fit0-00000001", "new")
    newest = tmp_path / "stfd-fit0-00000001.npz"
    newest.write_bytes(newest.read_bytes()[:-10])
    warnings = []
    assert newest_state(folder, warnings) == "old"
    assert "Skipping checkpoint" in warnings[0]
    assert "stfd-fit0-00000001.npz" in warnings[0]


def pipe(path):
    os.mkfifo(path)


def endless(path):
    os.symlink("/dev/zero", path)


def larger_than_memory(path):
    with open(path, "wb") as file:
        file.truncate(1 << 43)


@pytest.mark.parametrize("place", [pipe, endless, larger_than_memory, os.mkdir])
def test_what_is_no_file_of_a_checkpoint_is_skipped(tmp_path, place):
    folder = store.FolderStore(str(tmp_path), "run")
    put(folder, "fit0-00000000", "old")
    try:
        place(str(tmp_path / "stfd-fit0-00000001.npz"))
    except OSError as error:
        pytest.skip(f"this file system cannot hold it: {error}")
    warnings = []
    assert newest_state(folder, warnings) == "old"
    assert "stfd-fit0-00000001.npz" in warnings[0]


def test_names_that_the_library_does_not_make_are_ignored(tmp_path):
    names = [
        "fit-00000001",
        "fitness-00000001",
        "fit\u0663-00000001",
        "fit0-\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0661",
    ]
    for name in names:
        (tmp_path / f"stfd-{name}.npz").write_text("foreign")
    folder = store.FolderStore(str(tmp_path), "run")
    put(folder, "fit0-00000000", "mine")
    assert folder.names() == ["fit0-00000000"]


@pytest.mark.parametrize("text", ["[]", "[" * 9000, "7", "\xff", '{"run": "me"', "x" * 100_000])
def test_a_damaged_mark_of_a_finished_run_means_that_one_has_finished(tmp_path, text):
    put(store.FolderStore(str(tmp_path), "run"), "fit0-00000000")
    (tmp_path / "stfd-finished.json").write_text(text, "latin-1")
    assert store.FolderStore(str(tmp_path), "me").names() == []


def test_foreign_files_are_left_alone(tmp_path):
    (tmp_path / "model.keras").write_text("mine")
    (tmp_path / "stfd-notes.txt").write_text("mine")
    folder = store.FolderStore(str(tmp_path), "run")
    assert folder.names() == []
    put(folder, "fit0-00000000")
    folder.finish()
    put(store.FolderStore(str(tmp_path), "another"), "fit0-00000000")
    assert (tmp_path / "model.keras").read_text() == "mine"


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    folder = store.FolderStore(str(tmp_path), "run")
    put(folder, "fit0-00000000", "old")

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        folder.put("fit0-00000001", fail)
    assert os.listdir(tmp_path) == ["stfd-fit0-00000000.npz"]


def test_temporary_files_of_killed_processes_are_removed(tmp_path):
    (tmp_path / ".stfd-abc").write_text("half")
    put(store.FolderStore(str(tmp_path), "run"), "fit0-00000000")
    assert os.listdir(tmp_path) == ["stfd-fit0-00000000.npz"]


def test_an_interrupted_run_is_resumed_and_a_finished_run_is_not(tmp_path):
    first = store.FolderStore(str(tmp_path), "first")
    put(first, "fit0-00000004")
    assert store.FolderStore(str(tmp_path), "second").names() == ["fit0-00000004"]
    first.finish()
    assert store.FolderStore(str(tmp_path), "first").names() == ["fit0-00000004"]  # a relaunch of the same run
    second = store.FolderStore(str(tmp_path), "second")
    assert second.names() == []
    put(second, "fit0-00000000")
    assert sorted(os.listdir(tmp_path)) == ["stfd-fit0-00000000.npz"]
    assert second.names() == ["fit0-00000000"]


def test_a_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError) as caught:
        store.FolderStore(str(tmp_path / "file" / "below" / "it"), "run")
    reason = f"cannot be created, because '{tmp_path}/file' is not a directory. Choose another path."
    assert str(caught.value) == f"checkpoint_dir='{tmp_path}/file/below/it' {reason}"
    with pytest.raises(CheckpointError) as caught:
        store.FolderStore(str(tmp_path / "file"), "run")
    text = "exists, but is not a directory. Choose another path."
    assert str(caught.value) == f"checkpoint_dir='{tmp_path}/file' {text}"


def refuse(path, exist_ok):
    raise PermissionError(13, "Permission denied", path)


def test_a_folder_that_may_not_be_created(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "makedirs", refuse)
    with pytest.raises(CheckpointError, match=r"Permission denied.* a location that the executors' user may write to"):
        store.FolderStore(str(tmp_path / "new"), "run")


@pytest.mark.parametrize("scheme", ["hdfs", "sftp"])
def test_a_file_system_that_cannot_be_opened(monkeypatch, scheme):
    lines = "\n".join(["Unable to load libjvm:", *["dlopen(/usr/lib/jvm/libjvm.so) failed"] * 100])

    def fail(path):
        raise OSError(lines)

    monkeypatch.setattr(filesystems, "open_filesystem", fail)
    with pytest.raises(CheckpointError) as caught:
        store.FolderStore(f"{scheme}://h:1/x", "run")
    text = str(caught.value)
    assert text.startswith(f"checkpoint_dir='{scheme}://h:1/x' cannot be opened: OSError: Unable to load libjvm. ")
    assert "or choose another location." in text
    assert ("CLASSPATH" in text) == (scheme == "hdfs")
    assert "dlopen" not in text
    assert caught.value.__suppress_context__


def test_checkpoints_of_an_earlier_attempt_must_exist(tmp_path):
    settings = CheckpointSettings(str(tmp_path), run_id="run", expected=("fit0-00000000",))
    with pytest.raises(CheckpointError, match=r"fit0-00000000.*checkpoint_dir must be a location that all hosts share"):
        store.open_store(settings, {}, is_chief=True, send_file=print)
    assert store.open_store(settings, {}, is_chief=False, send_file=print).names() == []
    put(store.FolderStore(str(tmp_path), "run"), "fit0-00000000")
    assert store.open_store(settings, {}, is_chief=True, send_file=print).names() == ["fit0-00000000"]


def test_the_driver_keeps_checkpoints_for_a_run_without_a_folder(tmp_path):
    sent = {}

    def send(name, file):
        file.seek(0)
        sent[name] = file.read()

    with open(tmp_path / "kept", "w+b") as file:
        snapshot.write(file, {}, "kept")
        file.flush()
        settings = CheckpointSettings(at_driver=True)
        files = {"fit0-00000003": file.fileno()}
        kept = store.open_store(
            settings, files, True, lambda name, file: sent.update({name: file.seek(0) or file.read()})
        )
        assert newest_state(kept, []) == "kept"
    put(kept, "fit0-00000004", "new")
    assert snapshot.read(sent["fit0-00000004"])[1] == "new"
    assert store.open_store(CheckpointSettings(), {}, True, print) is None


def test_fsspec_provides_other_file_systems():
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    files = filesystems.FsspecFilesystem(system, "/checkpoints")
    files.create()
    files.write("stfd-fit0-00000000.npz", lambda file: snapshot.write(file, {"a": 1}, [1]))
    assert files.list() == ["stfd-fit0-00000000.npz"]
    with files.read("stfd-fit0-00000000.npz") as file:
        assert snapshot.read(file.read())[1] == [1]
    files.remove("stfd-fit0-00000000.npz")
    assert files.list() == []


def test_an_object_store_without_any_checkpoint_is_empty():
    fsspec = pytest.importorskip("fsspec")

    class ObjectStore(fsspec.filesystem("memory").__class__):
        def makedirs(self, path, exist_ok=False):
            """Do nothing: a directory exists once it has an object."""

    files = filesystems.FsspecFilesystem(ObjectStore(skip_instance_cache=True), "/bucket/new")
    files.create()
    assert files.list() == []
