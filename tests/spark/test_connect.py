"""A run over Spark Connect."""

import pytest

from clusters import HAS_CONNECT, NO_CONNECT, run_program


@pytest.mark.skipif(not HAS_CONNECT, reason=NO_CONNECT)
def test_a_run_over_connect(tmp_path):
    result, printed = run_program("connect_run.py", str(tmp_path))
    assert result["value"] == 42
    assert result["rendezvous"] == ["channel"]
    assert result["logs"] == {"rank0": 1_000_000, "rank1": 1_000_000}
    assert result["large"] == 200 << 20
    assert result["failure"] == ["OwnError", "helpers.OwnError: (5, 'over connect')"]
    assert result["module"] == 7
    assert "'counted', which the function uses, is an accumulator of classic Spark" in result["accumulator"]
    assert result["dataframe"].startswith("The global variable 'rows', which the function uses, a DataFrame, cannot be")
    assert result["gpu"] == "GpuConfigurationError"
    assert "[rank 1 @" in printed
    assert "cancelled" in result["interrupted"] or "Spark ended the run" in result["interrupted"]
    assert result["gone"]
    assert result["rows"] == 10
    kind, message, seconds = result["too_few"]
    assert kind == "RendezvousTimeoutError", message
    assert "0 of 4 workers connected within start_timeout=3 s" in message
    assert seconds < 25
