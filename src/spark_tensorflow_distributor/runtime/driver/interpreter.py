"""Checks, with a local master, that the Python interpreter of Spark's workers suits the driver."""

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from ...errors import ClusterError

_NEEDED = ("pyarrow", "pandas", "tensorflow")
_PROBE = (
    "import importlib.util as u, json, sys; "
    "print(json.dumps([list(sys.version_info[:2]), [n for n in sys.argv[1:] if u.find_spec(n) is None]]))"
)
_PROBE_SECONDS = 20.0


def check_local_python(executable: str, env: Mapping[str, str]) -> None:
    """Check the interpreter of the workers.

    Args:
        executable: The command that Spark starts: PYSPARK_PYTHON when the session started, else ``python3``.
        env: Additional environment variables of the workers.

    Raises:
        ClusterError: The interpreter does not exist, has a different version from this one, or lacks a package.
    """
    path = shutil.which(executable)
    if path is None:
        _refuse(executable, "which is not an executable file")
    # Links are not resolved: those of several virtual environments may point to the same file.
    if Path(path).absolute() == Path(sys.executable).absolute():
        return
    version, missing = _probe(path, tuple(sorted({**os.environ, **env}.items())))
    if version is None:
        return  # the job itself will show why
    if version != sys.version_info[:2]:
        _refuse(executable, f"which is Python {_dotted(version)}")
    if missing:
        _refuse(executable, f"which has no {', no '.join(missing)}")


def _refuse(executable: str, problem: str) -> NoReturn:
    setting = os.environ.get("PYSPARK_PYTHON")
    found = "is not set" if setting is None else f"is {setting!r}"
    raise ClusterError(
        f"Spark's local workers would run {executable!r}, {problem}; the driver is Python "
        f"{_dotted(sys.version_info[:2])} at {sys.executable}.\n"
        f"PYSPARK_PYTHON {found}. Before the SparkSession starts, set os.environ['PYSPARK_PYTHON'] = sys.executable."
    )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


@functools.lru_cache(maxsize=8)
def _probe(path: str, env: tuple[tuple[str, str], ...]) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Return an interpreter's version, or None if it cannot be determined, and the needed packages that it lacks."""
    command = [path, "-c", _PROBE, *_NEEDED]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_SECONDS, env=dict(env))
        version, missing = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None, ()
    return tuple(version), tuple(missing)
