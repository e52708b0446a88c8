"""What the models have in common: a trained Keras model, applied to DataFrames."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pyspark.ml.base import Model

from ..errors import ConfigurationError
from ..inference.model import PackedModel, packed_keras
from ..inference.predict import predict
from . import columns
from .params import HasInputs, HasPredictBatchSize, HasRunner, HasTargets
from .running import waiting_runner
from .summary import TrainingSummary
from .task import TrainedModel, TrainingTask
from .worker import evaluate

if TYPE_CHECKING:
    from pyspark.sql import Column as SparkColumn
    from pyspark.sql import DataFrame


class KerasModel(HasInputs, HasTargets, HasPredictBatchSize, HasRunner, Model):
    """Base of the models.

    Attributes:
        summary: The :class:`TrainingSummary`.
    """

    _is_classifier: ClassVar[bool]

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._trained: TrainedModel | None = None
        self.summary = TrainingSummary()
        self._keras_model: Any = None
        self._packed: PackedModel | None = None
        self._class_names: list[str] | None = None
        self._num_classes: int | None = None

    def _set_trained(
        self, trained: TrainedModel, summary: TrainingSummary, names: list[str] | None, count: int | None
    ) -> None:
        """Set what was trained or loaded."""
        self._trained, self.summary = trained, summary
        self._packed = packed_keras(trained.archive, trained.library, trained.custom_objects)
        self._class_names = names
        self._num_classes = max(trained.width, 2) if self._is_classifier and trained.width else count

    @property
    def trained(self) -> TrainedModel:
        """The Keras model as bytes, with what is known about it.

        Raises:
            ConfigurationError: The model is empty, because it was constructed instead of trained or loaded.
        """
        if self._trained is None:
            raise self._no_model()
        return self._trained

    def _no_model(self) -> ConfigurationError:
        return ConfigurationError(
            f"This {type(self).__name__} contains no Keras model. Models are made by an estimator's fit() and by "
            "load()."
        )

    @property
    def history(self) -> Mapping[str, Any]:
        """The metrics of each epoch by name, as in Keras' ``History.history``."""
        return self.summary.history

    @property
    def hasSummary(self) -> bool:
        """Whether there is a summary: a trained or loaded model has one, unless it consists of models for groups."""
        return self._packed is not None

    @property
    def kerasModel(self) -> Any:
        """The Keras model, compiled as it was trained. This loads TensorFlow into the driver.

        Raises:
            SerializationError: The driver's Keras cannot load it.
        """
        if self._keras_model is None:
            from ..inference.loading import load_keras

            packed = self._packed_model()
            self._keras_model = load_keras(packed.spec, packed.data)
        return self._keras_model

    def _packed_model(self) -> PackedModel:
        if self._packed is None:
            raise self._no_model()
        return self._packed

    def evaluate(self, dataset: "DataFrame") -> dict[str, float]:
        """Compute the loss and the metrics that the model was compiled with, on the cluster.

        Args:
            dataset: A DataFrame with the feature and label columns and, if ``weightCol`` is set, the weight column.

        Returns:
            The values by the metrics' names.
        """
        columns.check_is_frame(dataset)
        packed = self._packed_model()
        features, label = self.input_columns(), self._value("labelCol")
        weight = self._value("weightCol") or None
        known = columns.known_columns(dataset, {self.input_param(): features, "labelCol": label, "weightCol": weight})
        columns.check_label(known[label], "labelCol", is_classifier=self._is_classifier)
        if weight is not None:
            columns.check_weight(known[weight])
        frame = columns.training_frame(dataset, known, [label, *([weight] if weight else [])])
        arguments = {
            name: value
            for name, value in self.runner_arguments().items()
            if name not in ("checkpoint_dir", "log_dir", "callbacks")
        }
        batch_size = max(self._value("predictBatchSize"), self._value("numSlots"))
        task = TrainingTask(features, label, weight, batch_size, 1, 0, self._is_classifier, self._num_classes)
        run, _ = waiting_runner(dataset.sparkSession, arguments)
        found: dict[str, float] = run(evaluate, task=task, trained=packed, test_data=frame)
        return found

    def _transform(self, dataset: "DataFrame") -> "DataFrame":
        import pyspark.sql.functions as F

        outputs = self._output_params()
        trained = self.trained
        columns.check_is_frame(dataset)
        columns.known_columns(dataset, {self.input_param(): self.input_columns()})
        if not outputs:
            return dataset
        output_column = f"{self.uid}_output"
        scored = self._score(dataset, output_column)
        kind = scored.schema[output_column].dataType.simpleString()
        width = 1 if not kind.startswith("array") else trained.width
        output = F.col(output_column).cast("double" if width == 1 else "array<double>")
        # One projection for all columns; Spark computes the output once, because it is not deterministic.
        for name, value in self._output_columns(output, width, outputs).items():
            scored = scored.withColumn(name, value)
        return scored.drop(output_column)

    def _score(self, dataset: "DataFrame", output_column: str) -> "DataFrame":
        """Return the rows with the model's output in another column."""
        trained = self.trained
        return predict(
            dataset,
            self._packed_model(),
            self.input_columns(),
            stack=trained.stack,
            output_column=output_column,
            batch_size=self._value("predictBatchSize"),
            output_type={None: None, 1: "float"}.get(trained.width, "array<float>"),
            gpu_resource_name=self._value("gpuResourceName"),
        )

    def _output_params(self) -> dict[str, str]:
        """Return the names of the columns to add, by Param; as in pyspark.ml, an empty name leaves a column out."""
        names = {param: self._value(param) for param in self._output_param_names()}
        return {param: name for param, name in names.items() if name}

    def _output_param_names(self) -> tuple[str, ...]:
        return ("predictionCol",)

    def _output_columns(
        self, output: "SparkColumn", width: int | None, names: Mapping[str, str]
    ) -> "dict[str, SparkColumn]":
        """Return the columns to add, by name.

        Args:
            output: The model's output: a double if ``width`` is 1, else an array of doubles.
            width: The number of values; None if it is not known.
            names: The names of the columns by Param.
        """
        raise NotImplementedError
