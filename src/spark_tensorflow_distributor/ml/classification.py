"""KerasClassifier and its model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyspark.ml.param import Param, Params
from pyspark.ml.param.shared import HasProbabilityCol, HasRawPredictionCol, HasThresholds

from ..errors import ConfigurationError
from . import columns, converters
from .estimator import KerasEstimator
from .groups.spark_model import KerasGroupModel, KerasGroupModelReader, KerasGroupModelWriter
from .model import KerasModel
from .params import AccessibleParams
from .persistence import KerasEstimatorReader, KerasEstimatorWriter, KerasModelReader, KerasModelWriter, Saved

if TYPE_CHECKING:
    from pyspark.sql import Column as SparkColumn


class HasClassColumns(AccessibleParams, HasProbabilityCol, HasRawPredictionCol, HasThresholds):
    """The columns that a classifier predicts."""

    thresholds: "Param[Any]" = Param(
        Params._dummy(),
        "thresholds",
        "one number for each class, by which its probability is divided before the largest is chosen",
        converters.numbers,
    )


class KerasClassifier(KerasEstimator, HasClassColumns, Saved):
    """Trains a Keras model to classify the rows of a DataFrame, as an estimator of ``pyspark.ml``.

    All arguments are Params, and optional keywords; ``explainParams()`` describes them, and docs/ml.md shows their use.
    Labels are class indices 0, 1, 2, ... of any numeric type, as StringIndexer makes them. The model's output is one
    probability or logit for each class, or a single one for class 1 of two.

    Example::

        def build(num_features, units):
            import keras
            model = keras.Sequential([keras.Input((num_features,)), keras.layers.Dense(units, activation="relu"),
                                      keras.layers.Dense(3, activation="softmax")])
            model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
            return model

        classifier = KerasClassifier(modelFn=build, modelParams={"units": 32}, epochs=5, batchSize=256, numSlots=4)
        predictions = classifier.fit(train_df).transform(test_df)

    ``fit`` raises:
        ConfigurationError: A Param is invalid, or a function does not take its arguments.
        DataError: A column is missing or of an unsuitable type, or a label is not the index of a class.
        TrainingFailedError: A worker failed. See ``MirroredStrategyRunner.run`` for the other errors of a run.
    """

    _is_classifier = True
    _writer, _reader = KerasEstimatorWriter, KerasEstimatorReader

    def _model_class(self) -> "type[KerasClassificationModel]":
        return KerasClassificationModel

    def _group_model_class(self) -> "type[KerasClassificationGroupModel]":
        return KerasClassificationGroupModel


class KerasClassificationModel(KerasModel, HasClassColumns, Saved):
    """A Keras classifier that :class:`KerasClassifier` has trained.

    ``transform`` adds ``predictionCol`` (double), ``probabilityCol`` and ``rawPredictionCol`` (vectors). Raw
    predictions are the model's own output: logits if its loss has ``from_logits=True``, else the probabilities.
    """

    _is_classifier = True
    _writer, _reader = KerasModelWriter, KerasModelReader

    @property
    def numClasses(self) -> int | None:
        """The number of classes; None if neither the model nor the label's metadata declares it."""
        return self._num_classes

    @property
    def labels(self) -> list[str] | None:
        """The names of the classes, from the metadata of the label column (StringIndexer's); None without metadata."""
        return self._class_names

    def _output_param_names(self) -> tuple[str, ...]:
        return ("rawPredictionCol", "probabilityCol", "predictionCol")

    def _output_columns(
        self, output: "SparkColumn", width: int | None, names: Mapping[str, str]
    ) -> "dict[str, SparkColumn]":
        from pyspark.ml.functions import array_to_vector

        are_logits, thresholds = self.trained.gives_logits, self._value("thresholds")
        if thresholds is not None and self._num_classes not in (None, len(thresholds)):
            raise ConfigurationError(
                f"thresholds has {len(thresholds)} numbers, but the model has {self._num_classes} classes."
            )
        probabilities = columns.probabilities_of(output, width, are_logits=are_logits)
        found: dict[str, SparkColumn] = {}
        for param, name in names.items():
            if param == "rawPredictionCol":
                found[name] = array_to_vector(columns.raw_of(output, width, are_logits=are_logits))
            elif param == "probabilityCol":
                found[name] = array_to_vector(probabilities)
            else:
                chosen = columns.most_probable(probabilities, thresholds)
                found[name] = chosen.alias(name, metadata=columns.class_metadata(self._num_classes, self._class_names))
        return found


class KerasClassificationGroupModel(KerasGroupModel, KerasClassificationModel):
    """One Keras classifier for each group, trained by :class:`KerasClassifier` with ``groupCol``.

    ``transform`` adds the columns of :class:`KerasClassificationModel`, null for groups without a model.
    """

    _writer, _reader = KerasGroupModelWriter, KerasGroupModelReader


# Saved files name the classes by their public place.
for _cls in (KerasClassifier, KerasClassificationModel, KerasClassificationGroupModel):
    _cls.__module__ = __package__
