"""KerasRegressor and its model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .estimator import KerasEstimator
from .groups.spark_model import KerasGroupModel, KerasGroupModelReader, KerasGroupModelWriter
from .model import KerasModel
from .persistence import KerasEstimatorReader, KerasEstimatorWriter, KerasModelReader, KerasModelWriter, Saved

if TYPE_CHECKING:
    from pyspark.sql import Column as SparkColumn


class KerasRegressor(KerasEstimator, Saved):
    """Trains a Keras model to predict numbers, as an estimator of ``pyspark.ml``.

    All arguments are Params, and optional keywords; ``explainParams()`` describes them, and docs/ml.md shows their use.
    A label is one number; or, for a model of several outputs, an array or a vector, and then predictions are vectors.

    Example::

        def build(num_features):
            import keras
            model = keras.Sequential([keras.Input((num_features,)), keras.layers.Dense(32, activation="relu"),
                                      keras.layers.Dense(1)])
            model.compile("adam", "mse")
            return model

        model = KerasRegressor(modelFn=build, labelCol="price", epochs=5, numSlots=4).fit(train_df)

    ``fit`` raises the same errors as that of :class:`KerasClassifier`.
    """

    _is_classifier = False
    _writer, _reader = KerasEstimatorWriter, KerasEstimatorReader

    def _model_class(self) -> "type[KerasRegressionModel]":
        return KerasRegressionModel

    def _group_model_class(self) -> "type[KerasRegressionGroupModel]":
        return KerasRegressionGroupModel


class KerasRegressionModel(KerasModel, Saved):
    """A Keras regressor that :class:`KerasRegressor` has trained.

    ``transform`` adds ``predictionCol``: a double, or a vector for a model of several outputs.
    """

    _is_classifier = False
    _writer, _reader = KerasModelWriter, KerasModelReader

    def _output_columns(
        self, output: "SparkColumn", width: int | None, names: Mapping[str, str]
    ) -> "dict[str, SparkColumn]":
        from pyspark.ml.functions import array_to_vector

        return {name: output if width == 1 else array_to_vector(output) for name in names.values()}


class KerasRegressionGroupModel(KerasGroupModel, KerasRegressionModel):
    """One Keras regressor for each group, trained by :class:`KerasRegressor` with ``groupCol``.

    ``transform`` adds the column of :class:`KerasRegressionModel`, null for groups without a model.
    """

    _writer, _reader = KerasGroupModelWriter, KerasGroupModelReader


# Saved files name the classes by their public place.
for _cls in (KerasRegressor, KerasRegressionModel, KerasRegressionGroupModel):
    _cls.__module__ = __package__
