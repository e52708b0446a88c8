"""A run over Spark Connect."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent / "programs" / "connect_run.py"


@pytest.mark.skipif(importlib.util.find_spec("grpc_status") is None, reason="pyspark[connect] is not installed")
def test_a_run_over_connect(tmp_path):
    done = subprocess.run(
        [sys.executable, str(PROGRAM), json.dumps({}), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(lines[0][7:])
    assert result["value"] == 42
    assert result["rendezvous"] == ["channel"]
    assert result["large"] == 200 << 20
    assert result["failure"] == ["OwnError", "helpers.OwnError: (5, 'over connect')"]
    assert result["gpu"] == "GpuConfigurationError"
    assert "[rank 1 @" in done.stdout
    assert "cancelled" in result["interrupted"] or "Spark ended the run" in result["interrupted"]
    assert result["gone"]
    assert result["rows"] == 10
    kind, message, seconds = result["too_few"]
    assert kind == "RendezvousTimeoutError", message
    assert "0 of 4 workers connected within start_timeout=3 s" in message
    assert seconds < 25
