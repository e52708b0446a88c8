"""How TensorFlow is started in Spark's Python worker, with a stand-in for it."""

import sys
from types import SimpleNamespace

import pytest

from spark_tensorflow_distributor.inference import startup


@pytest.mark.parametrize(("value", "threads"), [(None, [4, 2]), ("", [4, 2]), ("3", [])])
def test_an_empty_variable_sets_no_number_of_threads(monkeypatch, value, threads):
    found = []
    threading = SimpleNamespace(
        set_intra_op_parallelism_threads=found.append, set_inter_op_parallelism_threads=found.append
    )
    config = SimpleNamespace(
        threading=threading, list_physical_devices=lambda kind: [], list_logical_devices=lambda: []
    )
    monkeypatch.setitem(sys.modules, "tensorflow", SimpleNamespace(config=config))
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    startup._configure(4)
    assert found == threads


def test_a_missing_tensorflow_names_the_interpreter():
    text = startup.missing_here(ImportError("No module named 'tensorflow'"))
    assert text.startswith(
        f"TensorFlow cannot be imported by the executors' Python ({sys.executable}): No module named"
    )
    assert "spark.pyspark.python" in text
