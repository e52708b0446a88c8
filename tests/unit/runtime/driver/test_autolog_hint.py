"""The hint for users who call ``mlflow.autolog()`` at the driver."""

import sys
import types

import pytest

from spark_tensorflow_distributor import RunCallback
from spark_tensorflow_distributor.runtime.driver import autolog_hint
from spark_tensorflow_distributor.runtime.driver.callbacks import CallbackList


class MLflowCallback(RunCallback):
    """Stands in for ours, which needs MLflow."""


@pytest.mark.parametrize(
    ("integrations", "callbacks", "warnings"),
    [
        ({}, [], 0),
        ({"mlflow": {"disable": False}}, [], 1),
        ({"keras": {"disable": True}}, [], 0),
        ({"keras": {"disable": False}}, [RunCallback()], 1),
        ({"keras": {"disable": False}}, [MLflowCallback()], 0),
    ],
)
def test_autolog_at_the_driver_is_mentioned_once(monkeypatch, caplog, integrations, callbacks, warnings):
    monkeypatch.setattr(autolog_hint, "_has_warned", False)
    utils = types.SimpleNamespace(AUTOLOGGING_INTEGRATIONS=integrations)
    monkeypatch.setitem(sys.modules, "mlflow.utils.autologging_utils", utils)
    for _ in range(2):
        autolog_hint.warn_of_autolog(CallbackList(callbacks))
    assert len(caplog.records) == warnings
