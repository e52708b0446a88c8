"""The models of all groups, which stay in Spark, and their predictions."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...data.columns import quoted
from ...errors import ConfigurationError, DataError, SerializationError
from ...formatting import one_line, sentence
from ...inference.features import feature_names, select_columns
from ...inference.model import ModelSpec
from ...inference.predict import column_function, payload_of
from ...runtime.shipping import shipped
from .frames import check_frame, integer_types, key_columns, key_texts, scored_rows
from .prediction import GroupPredictTask
from .spec import Template

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

HandleInvalid = Literal["keep", "skip", "error"]


@dataclass(frozen=True)
class GroupModels:
    """The models of all groups.

    Attributes:
        table: One row for each group: the key's columns, ``num_rows``, ``seconds``, ``error`` (null if the training
            succeeded), ``logs`` (those of the last epoch), ``history`` (of all epochs), ``model`` (the weights) and
            ``template``.
        template: What the models have in common.
        group_columns: The columns that form the key.
        features: The feature columns.
        is_single: Whether they were given as a single name.
        num_groups: The number of groups.
        num_failed: How many of them have no model.
    """

    table: "DataFrame"
    template: Template
    group_columns: tuple[str, ...]
    features: tuple[str, ...]
    is_single: bool
    num_groups: int
    num_failed: int

    @property
    def models(self) -> "DataFrame":
        """One row for each group: the key, ``num_rows``, ``seconds``, ``error``, ``logs`` and ``model``."""
        return self.table.drop("history", "template")

    @property
    def failures(self) -> "DataFrame":
        """The groups whose training failed: the key, ``num_rows``, ``seconds`` and ``error``."""
        return self.table.where("error IS NOT NULL").select(*self._keys(), "num_rows", "seconds", "error")

    @property
    def history(self) -> "DataFrame":
        """One row for each epoch of each group: the key, ``epoch`` (from 0) and ``logs``."""
        import pyspark.sql.functions as F

        return self.table.select(*self._keys(), F.posexplode("history").alias("epoch", "logs"))

    def _keys(self) -> list[str]:
        return [quoted(name) for name in self.group_columns]

    def keras_model(self, *key: Any) -> Any:
        """Return the model of one group. This loads TensorFlow into the driver.

        Args:
            key: The values of the key's columns, in their order.

        Raises:
            ConfigurationError: The key does not have one value for each column.
            DataError: There is no model for the key.
        """
        import pyspark.sql.functions as F

        if len(key) != len(self.group_columns):
            raise ConfigurationError(
                f"A key consists of {', '.join(self.group_columns)}, but {len(key)} values were given."
            )
        found = self.table.select(*self._keys(), "model", "error")
        for name, value in zip(self._keys(), key, strict=True):
            found = found.where(F.col(name).eqNullSafe(F.lit(value)))
        row = found.first()
        if row is None or row["model"] is None:
            shown = ", ".join(f"{name}={value!r}" for name, value in zip(self.group_columns, key, strict=True))
            why = (
                "it was not among the rows of fit(). The model's DataFrame models lists all groups."
                if row is None
                else f"its training failed: {sentence(row['error'])}"
            )
            raise DataError(f"There is no model for the group {shown}: {why}")
        from ...inference.loading import load_keras
        from .weights import unpack_weights

        model = load_keras(self.template.spec, self.template.data)
        model.set_weights(unpack_weights(bytes(row["model"]), model.get_weights()))
        return model

    def predict(
        self,
        df: "DataFrame",
        *,
        output_column: str = "prediction",
        feature_columns: str | Sequence[str] | None = None,
        group_columns: str | Sequence[str] | None = None,
        handle_invalid: HandleInvalid = "keep",
        batch_size: int = 4096,
        gpu_resource_name: str = "gpu",
    ) -> "DataFrame":
        """Return a DataFrame with an additional column: each row's prediction by the model of its group.

        Rows are shuffled, so that those of a group come together; the other columns stay in the JVM.

        Args:
            df: A DataFrame with the key and feature columns.
            output_column: Name of the new column; an existing column of that name is replaced.
            feature_columns: A name or a list of names. Default: those of the training.
            group_columns: The columns of ``df`` that form the key, in the order of the training's. Default: those of
                the training.
            handle_invalid: What to do with rows whose group has no model: ``"keep"`` (a null prediction), ``"skip"``
                (leave them out) or ``"error"``.
            batch_size: Largest number of rows in one call of a model.
            gpu_resource_name: See :func:`fit_groups`.

        Raises:
            ConfigurationError, DataError: An argument or a column is invalid.
        """
        import pyspark.sql.functions as F
        import pyspark.sql.types as T

        check_frame(df)
        if handle_invalid not in ("keep", "skip", "error"):
            raise ConfigurationError(f"handleInvalid is {handle_invalid!r}; it must be 'keep', 'skip' or 'error'.")
        names = self.features if feature_columns is None else feature_names(feature_columns)
        is_single = self.is_single if feature_columns is None else isinstance(feature_columns, str)
        group_names = self.group_columns if group_columns is None else feature_names(group_columns)
        if len(group_names) != len(self.group_columns):
            raise ConfigurationError(
                f"groupCol names {', '.join(group_names)}, but the models' key consists of "
                f"{len(self.group_columns)} columns: {', '.join(self.group_columns)}."
            )
        df = df.drop(output_column)
        keys = key_columns(df, group_names)
        features = select_columns(df.schema.jsonValue(), names)
        integers = integer_types(features)
        rows = scored_rows(df, keys, features, self.table, self.group_columns, integers)
        kind = T.FloatType() if self.template.width == 1 else T.ArrayType(T.FloatType())
        task = GroupPredictTask(
            group_names, names, is_single, batch_size, gpu_resource_name, handle_invalid == "error", kind.json(),
            integers,
        )  # fmt: skip
        payload = payload_of(df.sparkSession, pickle.dumps(self.template))
        body = shipped("ml.groups.prediction", "run_function", pickle.dumps(task), payload)
        # Spark must neither compute the column again for each use nor move it away from the sorted rows.
        scored = rows.withColumn(
            "output",
            column_function(body, kind).asNondeterministic()(
                *key_texts(rows, len(keys)), "is_known", "model", *(f"f{n}" for n in range(len(features)))
            ),
        )
        chosen = scored.where("row IS NOT NULL")
        if handle_invalid == "skip":
            chosen = chosen.where("output IS NOT NULL")
        return chosen.select("row.*", F.col("output").alias(output_column))

    def save(self, path: str) -> None:
        """Write the models with Spark's writers; :func:`load_groups` reads them.

        Args:
            path: A path or URL that does not exist.
        """
        self.table.write.parquet(f"{path.rstrip('/')}/models")
        self.save_description(path)

    def save_description(self, path: str) -> None:
        """Write everything but the models' weights, as plain columns."""
        template = self.template
        row = (
            template.data, template.spec.kind, template.spec.key, template.spec.library, template.spec.custom_objects,
            template.spec.safe_mode, template.stack, template.width, template.gives_logits, list(self.group_columns),
            list(self.features), self.is_single, self.num_groups, self.num_failed,
        )  # fmt: skip
        kinds = (
            "archive binary, kind string, key string, library string, custom_objects binary, safe_mode boolean, "
            "stack boolean, width int, gives_logits boolean, group_columns array<string>, features array<string>, "
            "is_single boolean, num_groups bigint, num_failed bigint"
        )
        description = self.table.sparkSession.createDataFrame([row], kinds)
        description.coalesce(1).write.parquet(f"{path.rstrip('/')}/description")

    def unpersist(self) -> None:
        """Free what Spark keeps of the models; afterwards they would be trained again. Not needed with a path."""
        self.table.unpersist()


def load_groups(spark: Any, path: str) -> GroupModels:
    """Load models that ``GroupModels.save`` has written. Using them may run code: load only what you trust.

    Args:
        spark: The SparkSession.
        path: The path.

    Raises:
        SerializationError: The path contains no such models.
    """
    try:
        row = spark.read.parquet(f"{path.rstrip('/')}/description").first()
        table = spark.read.parquet(f"{path.rstrip('/')}/models")
    except Exception as error:
        raise SerializationError(f"The models of groups in {path} cannot be read: {one_line(error)}") from error
    spec = ModelSpec(row["kind"], row["key"], row["library"], "", bytes(row["custom_objects"]), row["safe_mode"])
    template = Template(spec, bytes(row["archive"]), row["stack"], row["width"], row["gives_logits"])
    return GroupModels(
        table, template, tuple(row["group_columns"]), tuple(row["features"]), row["is_single"], row["num_groups"],
        row["num_failed"],
    )  # fmt: skip
