"""A pipeline with a Keras stage over Spark Connect and on a standalone cluster."""

import pyspark
import pytest

from clusters import HAS_CONNECT, NO_CONNECT, StandaloneCluster, run_program

PROGRAM = "ml_run.py"


@pytest.mark.skipif(not HAS_CONNECT, reason=NO_CONNECT)
@pytest.mark.skipif(pyspark.__version__.startswith("3."), reason="pyspark.ml needs a classic session before Spark 4")
def test_over_connect(tmp_path):
    result, _ = run_program(PROGRAM, str(tmp_path), timeout=500)
    check_program(result)


def test_on_a_standalone_cluster(tmp_path):
    """Two executors of one core each; trainings of two workers wait for each other."""
    cluster = StandaloneCluster(tmp_path / "cluster")
    try:
        conf = {"spark.executor.cores": "1", "spark.cores.max": "2", "spark.executor.memory": "512m"}
        result, _ = cluster.drive(PROGRAM, str(tmp_path), conf=conf, timeout=500)
    finally:
        cluster.close()
    check_program(result)


def check_program(result):
    assert result["auc"] > 0.8
    assert result["loaded"] == pytest.approx(result["auc"])
    assert (result["epochs"], result["labels"], result["params"]) == (3, ["early", "late"], {"units": 4})
    assert not result["tensorflow"]
    assert all(metric > 0.5 for metric in result["metrics"])
    assert result["tuned"] == pytest.approx(result["metrics"][0])
