"""What the ``pyspark.ml`` models that consist of one Keras model for each group have in common."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import ConfigurationError
from .. import columns
from ..model import KerasModel
from ..persistence import KerasModelReader, KerasModelWriter
from ..task import TrainedModel
from .models import GroupModels, load_groups
from .params import HasGroupColumns

if TYPE_CHECKING:
    from pyspark.sql import Column as SparkColumn
    from pyspark.sql import DataFrame


class KerasGroupModel(KerasModel, HasGroupColumns):
    """Base of the models for groups: ``transform`` uses the model of each row's group.

    The models stay in Spark: in the executors' memory and disks (see ``unpersist``), or below ``groupModelsPath``, or
    where they were saved.
    """

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._groups: GroupModels | None = None

    def _take_groups(self, groups: GroupModels, names: list[str] | None, count: int | None) -> None:
        """Take what was trained or loaded."""
        self._groups, template = groups, groups.template
        self._trained = TrainedModel(
            template.data,
            template.spec.custom_objects,
            template.spec.library,
            template.stack,
            template.width,
            template.gives_logits,
        )
        self._class_names = names
        self._num_classes = max(template.width, 2) if self._is_classifier else count

    @property
    def groups(self) -> GroupModels:
        """The models of all groups, on which the other attributes are based.

        Raises:
            ConfigurationError: The model is empty, because it was constructed instead of trained or loaded.
        """
        if self._groups is None:
            raise ConfigurationError(
                f"This {type(self).__name__} contains no Keras models. Models are made by an estimator's fit() and by "
                "load()."
            )
        return self._groups

    @property
    def models(self) -> "DataFrame":
        """One row for each group: the key, ``num_rows``, ``seconds``, ``error``, ``logs``, ``model`` (the weights)."""
        return self.groups.models

    @property
    def failures(self) -> "DataFrame":
        """The groups whose training failed: the key, ``num_rows``, ``seconds`` and ``error``."""
        return self.groups.failures

    @property
    def history(self) -> "DataFrame":  # type: ignore[override]
        """One row for each epoch of each group: the key, ``epoch`` (from 0) and ``logs``."""
        return self.groups.history

    def kerasModel(self, *key: Any) -> Any:
        """Return the Keras model of one group. This loads TensorFlow into the driver.

        Args:
            key: The values of the columns in ``groupCol``, in their order.

        Raises:
            ConfigurationError: The key does not have one value for each column.
            DataError: There is no model for the key.
        """
        return self.groups.keras_model(*key)

    def unpersist(self) -> None:
        """Free what the executors keep of the models; see ``GroupModels.unpersist``."""
        self.groups.unpersist()

    def evaluate(self, dataset: "DataFrame") -> dict[str, float]:
        """Not available: the compiled metrics are those of single models.

        Raises:
            ConfigurationError: Always.
        """
        raise ConfigurationError(
            "The models of groups have no joint metrics. Use an evaluator of pyspark.ml on transform(df), or aggregate "
            "its columns by the key."
        )

    def _score(self, dataset: "DataFrame", output_column: str) -> "DataFrame":
        return self.groups.predict(
            dataset,
            output_column=output_column,
            feature_columns=self.input_columns(),
            group_columns=self._value("groupCol"),
            handle_invalid=self._value("handleInvalid"),
            batch_size=self._value("predictBatchSize"),
            gpu_resource_name=self._value("gpuResourceName") if self._value("useGpu") else "",
        )

    def _output_columns(
        self, output: "SparkColumn", width: int | None, names: Mapping[str, str]
    ) -> "dict[str, SparkColumn]":
        import pyspark.sql.functions as F

        found = {}
        for name, value in super()._output_columns(output, width, names).items():
            # Functions of vectors fail on null.
            is_class = self._is_classifier and name == names.get("predictionCol")
            metadata = columns.class_metadata(self._num_classes, self._class_names) if is_class else {}
            found[name] = F.when(output.isNotNull(), value).alias(name, metadata=metadata)
        return found


class KerasGroupModelWriter(KerasModelWriter):
    """Saves a model of groups: its Params, and with Spark's writers the models."""

    def _facts(self) -> dict[str, Any]:
        return {"classNames": self.model._class_names, "numClasses": self.model._num_classes}

    def _save_data(self, path: str) -> None:
        self.model.groups.save(f"{path}/groups")  # type: ignore[attr-defined]


class KerasGroupModelReader(KerasModelReader):
    """Loads a model of groups. This needs no TensorFlow."""

    def _load_data(self, instance: Any, path: str, entry: dict[str, Any]) -> None:
        groups = load_groups(self.sparkSession, f"{path}/groups")
        instance._take_groups(groups, entry["classNames"], entry["numClasses"])
