"""The distributions: reproducible, complete, and with metadata that PyPI accepts."""

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import spark_tensorflow_distributor as std

tomllib = pytest.importorskip("tomllib")  # Python 3.11
pytest.importorskip("build")
pytest.importorskip("hatchling")

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def build(folder: Path, *, source: Path = ROOT) -> dict[str, Path]:
    """Build both distributions without an environment of their own, which would need the network."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(source)]
    env = {**os.environ, "SOURCE_DATE_EPOCH": "1780000000"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("first"))


def digests(paths):
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}


def test_two_builds_give_the_same_files(built, tmp_path):
    assert digests(build(tmp_path)) == digests(built)
    assert sorted(built) == [
        f"spark_tensorflow_distributor-{VERSION}-py3-none-any.whl",
        f"spark_tensorflow_distributor-{VERSION}.tar.gz",
    ]


def test_the_wheel_has_the_package_and_nothing_else(built):
    (wheel,) = [path for name, path in built.items() if name.endswith(".whl")]
    names = zipfile.ZipFile(wheel).namelist()
    package = Path(std.__file__).parent
    expected = {path.relative_to(package.parent).as_posix() for path in package.rglob("*.py")}
    expected |= {"spark_tensorflow_distributor/py.typed"}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_sdist_has_what_tests_and_documentation_need(built):
    (sdist,) = [path for name, path in built.items() if name.endswith(".tar.gz")]
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("README.md", "CHANGELOG.md", "SECURITY.md", "mkdocs.yml", "docs/index.md", "tests/unit/test_house.py"):
        assert name in names
    for name in ("scripts/lib/site_pages.py", "examples/notebooks/start.ipynb", "docker/Dockerfile"):
        assert name in names
    assert not [name for name in names if "__pycache__" in name or name.startswith(("build/", "dist/", ".venv"))]


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("twine", ["check", "--strict", "*"]), ("check_wheel_contents", ["*.whl"]), ("pyroma", ["--min", "8", ROOT])],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_checks_distributions_accepts_them(built, module, arguments):
    pytest.importorskip(module)
    folder = next(iter(built.values())).parent
    words = [
        str(each) for argument in arguments for each in (folder.glob(argument) if "*" in str(argument) else [argument])
    ]
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_version_is_the_same_everywhere():
    assert std.__version__ == VERSION
    assert f"version: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^## \[.*{re.escape(VERSION)}", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
