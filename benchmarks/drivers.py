"""One driver process for each measurement: what the benchmarks share."""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# spark-tensorflow-distributor as it is on PyPI.
PEER = HERE / ".peers" / "spark-tensorflow-distributor-1.0.0"


def install_peer():
    """1.0.0, beside this file; once."""
    if not PEER.exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(PEER)]
        subprocess.run([*command, "spark-tensorflow-distributor==1.0.0"], check=True)


def measure(program, system, *arguments, timeout=900, **env):
    """What a driver process of its own tells: ``program --as system`` with more arguments.

    The system "1.0.0" has the package of that release and tf_keras, any other ours.
    """
    path = PEER if system == "1.0.0" else HERE.parent / "src"
    common = {"PYTHONPATH": str(path), "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    legacy = {"TF_USE_LEGACY_KERAS": "1"} if system == "1.0.0" else {}
    command = [sys.executable, program, "--as", system, *map(str, arguments)]
    env = {**os.environ, **common, **legacy, **env}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=timeout)
    if (found := told(done.stdout)) is None:
        raise SystemExit(f"{system} failed:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
    return found


def tell(result):
    """In the driver process."""
    print("MEASURED " + json.dumps(result), flush=True)


def told(output):
    """What ``tell`` told in the output of a process; None if it came not so far."""
    return next((json.loads(line[9:]) for line in output.splitlines() if line.startswith("MEASURED ")), None)
