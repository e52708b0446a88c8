"""``mlflow.autolog()`` in a training function, with stand-ins for MLflow's modules."""

import importlib
import sys

import pytest

from spark_tensorflow_distributor.runtime.trainer.mlflow_autolog import record_once

MODULE = """
def autolog(log_models=True, log_model_signatures=True, log_input_examples=False, disable=False):
    return log_models, log_model_signatures, log_input_examples, disable
autolog.integration_name = "keras"
"""


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    """An importable package ``mlflow``, as long as the test lasts."""
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "__init__.py").write_text("")
    (tmp_path / "mlflow" / "keras.py").write_text(MODULE)
    (tmp_path / "mlflow" / "tensorflow.py").write_text("")
    loaded = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "mlflow"}
    for name in loaded:
        del sys.modules[name]
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    yield
    sys.meta_path[:] = finders
    for name in [name for name in sys.modules if name.split(".")[0] == "mlflow"]:
        del sys.modules[name]
    sys.modules.update(loaded)


@pytest.mark.parametrize(
    ("is_chief", "found"), [(True, (True, False, False, False)), (False, (True, True, False, True))]
)
def test_only_the_chief_records_and_without_predicting(mlflow, is_chief, found):
    record_once(is_chief)
    keras = importlib.import_module("mlflow.keras")
    assert keras.autolog(log_models=True, disable=False) == found
    assert keras.autolog.integration_name == "keras"
    importlib.import_module("mlflow.tensorflow")  # has no autolog, like a version to come
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mlflow.nothing")
