"""Shared code of the benchmarks: runs a driver process for each measurement."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# Where spark-tensorflow-distributor 1.0.0 from PyPI is installed.
PEER = HERE / ".peers" / "spark-tensorflow-distributor-1.0.0"


def install_peer():
    """Install 1.0.0 next to this file, unless it is already there."""
    if not PEER.exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(PEER)]
        subprocess.run([*command, "spark-tensorflow-distributor==1.0.0"], check=True)


def measure(program, system, *arguments, timeout=900, **env):
    """Run ``program --as system`` in a new driver process, and return its result.

    The system "1.0.0" uses that release with tf_keras; all others use ours.
    """
    path = PEER if system == "1.0.0" else HERE.parent / "src"
    common = {"PYTHONPATH": str(path), "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    legacy = {"TF_USE_LEGACY_KERAS": "1"} if system == "1.0.0" else {}
    command = [sys.executable, program, "--as", system, *map(str, arguments)]
    env = {**os.environ, **common, **legacy, **env}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=timeout)
    if (found := parse_result(done.stdout)) is None:
        raise SystemExit(f"{system} failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
    return found


def print_result(result):
    """Print the result of a driver process, for :func:`parse_result`."""
    print("MEASURED " + json.dumps(result), flush=True)


def parse_result(output):
    """Return the result in the output of a process; None if it printed none."""
    return next((json.loads(line[9:]) for line in output.splitlines() if line.startswith("MEASURED ")), None)
