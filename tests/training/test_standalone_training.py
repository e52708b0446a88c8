"""Training over the two executors of a real standalone cluster."""

import numpy as np

from clusters import StandaloneCluster


def test_two_executors_train_the_model_of_one(tmp_path):
    cluster = StandaloneCluster(tmp_path)
    try:
        # One core an executor, so that the two workers stand in two of them, each with a fork server of its own.
        conf = {"spark.executor.cores": "1", "spark.cores.max": "2", "spark.executor.memory": "512m"}
        result, out = cluster.drive("train_run.py", conf=conf)
    finally:
        cluster.close()
    assert result["rendezvous"] == "channel", out
    for one, two in zip(result["one"], result["two"], strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    # Both executors have the lines of their own workers.
    logs = [path.read_text() for path in (tmp_path / "work").rglob("stderr")]
    assert len(logs) == 2
    assert any("Epoch 3/3" in log for log in logs)
