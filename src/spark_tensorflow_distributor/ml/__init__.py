"""Keras models as estimators of ``pyspark.ml``, for its pipelines, evaluators and tuning.

Each name is loaded on first use: a worker that runs this package's training function never loads ``pyspark.ml``.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names

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

__getattr__, __dir__ = lazy_names(globals(), _HOMES)
