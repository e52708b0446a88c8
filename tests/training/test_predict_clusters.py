"""Predictions with driver and executors apart: over Spark Connect, and on a standalone cluster."""

import numpy as np
import pytest

from clusters import HAS_CONNECT, NO_CONNECT, StandaloneCluster, run_program

PROGRAM = "predict_run.py"


@pytest.fixture(scope="module")
def model():
    import keras

    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(1)])


@pytest.mark.skipif(not HAS_CONNECT, reason=NO_CONNECT)
def test_over_connect(model, tmp_path):
    path = str(tmp_path / "m.keras")
    model.save(path)
    result, _ = run_program(PROGRAM, path)
    check_program(result, model)


def test_on_a_standalone_cluster(model, tmp_path):
    """The executors have neither this library nor the driver's files."""
    path = str(tmp_path / "m.keras")
    model.save(path)
    cluster = StandaloneCluster(tmp_path)
    try:
        conf = {"spark.executor.cores": "1", "spark.cores.max": "2", "spark.executor.memory": "512m"}
        result, _ = cluster.drive(PROGRAM, path, conf=conf)
    finally:
        cluster.close()
    check_program(result, model)


def check_program(result, model):
    wanted = model.predict(np.array([[i, i, i] for i in range(20)], "float32"), verbose=0)[:, 0]
    np.testing.assert_allclose(result["predict"], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result["sql"], wanted, rtol=1e-4, atol=1e-5)
    assert not result["tensorflow"]
    assert result["error"].startswith("DataError")
