"""Keras models as estimators of ``pyspark.ml``, for its pipelines, evaluators and tuning.

Each name is loaded on first use: a worker that runs this package's training function never loads ``pyspark.ml``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "KerasClassifier": "classification",
    "KerasClassificationModel": "classification",
    "KerasRegressor": "regression",
    "KerasClassificationGroupModel": "classification",
    "KerasRegressionGroupModel": "regression",
    "KerasRegressionModel": "regression",
    "TrainingSummary": "summary",
}

__all__ = [
    "KerasClassificationGroupModel",
    "KerasClassificationModel",
    "KerasClassifier",
    "KerasRegressionGroupModel",
    "KerasRegressionModel",
    "KerasRegressor",
    "TrainingSummary",
]

if TYPE_CHECKING:
    from .classification import KerasClassificationGroupModel, KerasClassificationModel, KerasClassifier
    from .regression import KerasRegressionGroupModel, KerasRegressionModel, KerasRegressor
    from .summary import TrainingSummary


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
