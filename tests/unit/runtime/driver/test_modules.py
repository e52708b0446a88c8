"""Which files of the caller's modules travel, and what is advised when a module is missing."""

import io
import json
import sys
import types
import zipfile

import pytest

from spark_tensorflow_distributor import ConfigurationError
from spark_tensorflow_distributor.runtime.driver import modules
from spark_tensorflow_distributor.runtime.driver.modules import import_advice, pack_modules
from spark_tensorflow_distributor.runtime.program_files import ProgramFiles


@pytest.fixture
def project(tmp_path, monkeypatch):
    package = tmp_path / "own_package"
    (package / "part" / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "part" / "leaf.py").write_text("value = 1")
    (package / "part" / "__pycache__" / "leaf.pyc").write_text("")
    (package / "table.json").write_text("{}")
    (tmp_path / "own_module.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def names(*entries):
    return sorted(zipfile.ZipFile(io.BytesIO(pack_modules(entries))).namelist())


PACKAGE = ["own_package/__init__.py", "own_package/part/leaf.py", "own_package/table.json"]


def test_names_objects_and_paths_mean_the_same(project):
    import own_package.part.leaf

    for entry in ("own_package", "own_package.part.leaf", own_package.part.leaf, own_package, project / "own_package"):
        assert names(entry) == PACKAGE
    for entry in ("own_module", project / "own_module.py", str(project / "own_module.py")):
        assert names(entry) == ["own_module.py"]
    assert names("own_module", "own_package") == ["own_module.py", *PACKAGE]
    assert pack_modules([]) == b""
    for name in [name for name in sys.modules if name.startswith("own_package")]:
        del sys.modules[name]


def test_archives_are_unpacked(project, tmp_path, monkeypatch):
    archive = tmp_path / "more.zip"
    archive.write_bytes(pack_modules(["own_package"]))
    assert names(archive) == PACKAGE
    archive.rename(tmp_path / "elsewhere.zip")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "elsewhere.zip"), *sys.path])
    assert names("own_package") == PACKAGE  # by zipimport


def test_what_cannot_travel_is_refused(monkeypatch, project):
    for entry, words in [
        ("no_such_module", "neither the name of a module"),
        (project / "nothing.py", "neither the name of a module"),
        (sys, "no file to send"),
        (types.ModuleType("made_up"), "no file to send"),
        (sys.modules["__main__"], "travel with train_fn anyway"),
        (3, "contains an int"),
    ]:
        with pytest.raises(ConfigurationError, match=words):
            pack_modules([entry])
    monkeypatch.setattr(modules, "_MAX_BYTES", 10)
    with pytest.raises(ConfigurationError, match="install large packages on the executors"):
        pack_modules(["own_package"])


def test_the_agent_unpacks_them_and_leaves_nothing_behind(project, tmp_path):
    folder = tmp_path / "executor"
    folder.mkdir()
    files = ProgramFiles(str(folder))
    assert files.unpack(b"") == ()
    assert not list(folder.iterdir())
    (entry,) = files.unpack(pack_modules(["own_package"]))
    with open(f"{entry}/own_package/table.json") as file:
        assert json.load(file) == {}
    with open(files.write(b"value"), "rb") as file:
        assert file.read() == b"value"
    files.close()
    assert not list(folder.iterdir())


def test_advice_for_a_missing_module(project):
    assert "py_modules=['own_module']" in import_advice("own_module")
    assert "py_modules=['own_package']" in import_advice("own_package.part")
    assert "the executors do not: install it there" in import_advice("pytest")
    assert "cannot import 'no_such_module' either" in import_advice("no_such_module")
