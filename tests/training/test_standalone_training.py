"""Training on the two executors of a real standalone cluster."""

import numpy as np

from clusters import StandaloneCluster


def test_two_executors_train_the_same_model_as_one(tmp_path):
    cluster = StandaloneCluster(tmp_path)
    try:
        # One core per executor, so that each worker has its own executor and fork server.
        conf = {"spark.executor.cores": "1", "spark.cores.max": "2", "spark.executor.memory": "512m"}
        result, out = cluster.drive("train_run.py", conf=conf)
    finally:
        cluster.close()
    assert result["rendezvous"] == "channel", out
    for one, two in zip(result["one"], result["two"], strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    # Each executor's log contains the output of its own worker.
    logs = [path.read_text() for path in (tmp_path / "work").rglob("stderr")]
    assert len(logs) == 2
    assert any("Epoch 3/3" in log for log in logs)
