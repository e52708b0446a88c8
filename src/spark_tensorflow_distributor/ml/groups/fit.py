"""Trains one model for each group of rows. The estimators call this if ``groupCol`` is set."""

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...config import check_whole_number
from ...errors import DataError, SerializationError, TrainingFailedError
from ...formatting import one_line
from ...inference.features import feature_names, select_columns
from ...inference.predict import payload_of
from ...runtime.driver.spark import is_connect
from ...runtime.shipping import shipped
from ...training.keras_pickle import dumps
from ..columns import check_exists, indicator_expression
from ..files import delete_folder
from ..functions import by_value
from .frames import check_frame, key_columns, label_expression, training_rows
from .models import GroupModels
from .spec import GroupProgram, GroupTask, Template
from .worker import RESULT_TYPES

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

# Partitions for each slot: more of them even out large groups, and lose less when a task is retried.
_TASKS_PER_SLOT = 4


def fit_groups(
    df: "DataFrame",
    model: Any,
    *,
    group_columns: str | Sequence[str],
    feature_columns: str | Sequence[str],
    label_column: str,
    weight_column: str | None = None,
    validation_column: str | None = None,
    order_columns: Sequence[str] = (),
    model_params: Mapping[str, Any] | None = None,
    callbacks: Callable[[], list[Any]] | None = None,
    batch_size: int = 32,
    epochs: int = 1,
    shuffle: bool = True,
    seed: int = 0,
    is_classifier: bool = False,
    num_classes: int | None = None,
    num_tasks: int | None = None,
    max_group_bytes: int = 1 << 30,
    path: str | None = None,
    gpu_resource_name: str = "gpu",
) -> "GroupModels":
    """Train one Keras model for each group of rows, many of them at the same time, each within one task.

    All models have the same architecture and the same seed. The result does not depend on the partitions. A group whose
    training fails does not fail the others; see ``GroupModels.failures``.

    Args:
        df: A DataFrame of classic Spark or Spark Connect.
        model: A function that returns a compiled model of Keras 3, or such a model, whose weights are the initial ones.
            The function gets ``model_params``, and those of ``num_features`` and ``num_classes`` that it names.
        group_columns: The columns that form the key. Null is a key, too.
        feature_columns: A name or a list of names, as in ``predict``. Several columns go side by side into a model with
            one input, else to its inputs by name.
        label_column: A numeric column, or one of arrays or vectors.
        weight_column: The weight column. Default: all rows weigh 1.
        validation_column: A boolean column, true for rows on which the model is evaluated after each epoch.
        order_columns: Sort the rows of a group by these columns. Only matters with ``shuffle=False``.
        model_params: Keyword arguments of the function.
        callbacks: A function that returns Keras callbacks for one group. Only their epoch and training methods
            are called.
        batch_size: Rows per step. Default: 32.
        epochs: Passes over the rows of a group. Default: 1.
        shuffle: Whether each epoch has an order of its own. Default: True.
        seed: Determines initial weights, dropout and the order of the rows. Default: 0.
        is_classifier: Whether labels must be class indices.
        num_classes: The number of classes, if it is known.
        num_tasks: The number of Spark tasks. Default: four for each slot that the cluster has now, but at least
            ``spark.sql.shuffle.partitions``; with Spark Connect, the latter.
        max_group_bytes: Size of a group's rows above which it fails instead of being trained. Default: 1 GiB.
        path: Where to write the models, a path or URL as Spark's writers take it; it must not exist. Default: Spark
            keeps them in the executors' memory and disks (``persist``), until ``unpersist``.
        gpu_resource_name: Name of the resource through which Spark assigns GPUs to tasks; tasks without one use the
            CPU.

    Raises:
        ConfigurationError: An argument is invalid.
        DataError: A column is missing, or is of an unsuitable type; or there are no rows.
        SerializationError: The function cannot be sent to the workers.
        TrainingFailedError: All groups failed; the message has the first failure.
    """
    check_frame(df)
    for name, value in {"batch_size": batch_size, "epochs": epochs, "max_group_bytes": max_group_bytes}.items():
        check_whole_number(name, value, 1)
    names = feature_names(feature_columns)
    group_names = feature_names(group_columns)
    schema = df.schema.jsonValue()
    _check_names(group_names)
    keys, features = key_columns(df, group_names), select_columns(schema, names)
    for name in order_columns:
        check_exists(df, "groupOrderCol", name)
    others = [label_expression(each) for each in select_columns(schema, [label_column], "labelCol")]
    if weight_column:
        others += [label_expression(each) for each in select_columns(schema, [weight_column], "weightCol")]
    if validation_column:
        others.append(indicator_expression(df, validation_column))
    task = GroupTask(
        len(keys), names, isinstance(feature_columns, str), label_column, bool(weight_column), bool(validation_column),
        batch_size, epochs, shuffle, seed, is_classifier, num_classes, max_group_bytes, gpu_resource_name,
    )  # fmt: skip
    payload = payload_of(df.sparkSession, _pickled(model, dict(model_params or {}), callbacks))
    rows = training_rows(df, keys, features, others, order_columns, num_tasks or _default_tasks(df.sparkSession))
    body = shipped("ml.groups.worker", "run_task", pickle.dumps(task), payload)
    types = {field.name: field.dataType.simpleString() for field in rows.schema.fields}
    declared = ", ".join(f"k{number} {types[f'k{number}']}" for number in range(len(keys)))
    results = ", ".join(f"{name} {kind}" for name, kind in RESULT_TYPES.items())
    found = rows.mapInArrow(body, f"{declared}, {results}").withColumnsRenamed(
        {f"k{number}": name for number, name in enumerate(group_names)}
    )
    return _collected(found, group_names, names, isinstance(feature_columns, str), path)


def _check_names(group_names: Sequence[str]) -> None:
    for name in group_names:
        if name.lower() in RESULT_TYPES:  # Spark's names have no case
            raise DataError(
                f"groupCol names {name!r}, which is also a column of the table of models ({', '.join(RESULT_TYPES)}). "
                "Rename it (DataFrame.withColumnRenamed)."
            )


def _default_tasks(spark: Any) -> int:
    """Return the number of partitions: enough for the slots that there are, and for those to come."""
    partitions = int(spark.conf.get("spark.sql.shuffle.partitions"))
    if is_connect(spark):
        return partitions
    context = spark.sparkContext
    slots = int(context.defaultParallelism) // int(context.getConf().get("spark.task.cpus", "1"))
    return max(_TASKS_PER_SLOT * slots, partitions)


def _pickled(model: Any, params: Mapping[str, Any], callbacks: Any) -> bytes:
    from ...runtime.driver.pickling import pack_function

    program = GroupProgram(model, params, callbacks)
    try:
        with by_value([model, callbacks, *params.values()]):
            return dumps(program)
    except Exception as error:
        if callable(model):
            pack_function(lambda **_: None, {"modelFn": model, **params, "callbacksFn": callbacks})  # names the culprit
        raise SerializationError(f"The model cannot be sent to the workers: {one_line(error)}") from error


def _collected(
    found: "DataFrame", group_names: tuple[str, ...], features: tuple[str, ...], is_single: bool, path: str | None
) -> "GroupModels":
    """Run the training, and keep its results where Spark keeps them."""
    import pyspark.sql.functions as F
    from pyspark import StorageLevel

    spark, folder = found.sparkSession, None if path is None else f"{path.rstrip('/')}/models"
    if folder is None:
        kept = found.persist(StorageLevel.MEMORY_AND_DISK)
    else:
        found.write.parquet(folder)
        kept = spark.read.parquet(folder)
    try:
        row = kept.agg(
            F.count(F.lit(1)).alias("groups"),
            F.count("error").alias("failed"),
            F.first("error", ignorenulls=True).alias("error"),
            F.first("template", ignorenulls=True).alias("template"),
            F.min(F.length("model")).alias("least"),
            F.max(F.length("model")).alias("most"),
        ).first()
        if row is None or row["groups"] == 0:
            raise DataError("The DataFrame has no rows to train on.")
        if row["template"] is None:
            raise TrainingFailedError(
                f"Training failed for all {row['groups']} groups. The first of them: {row['error']}\nA function or a "
                "column that is wrong for one group is usually wrong for all."
            )
        if row["least"] != row["most"]:
            raise DataError(
                "The models of the groups differ in their number of weights, because the arrays in a feature column "
                f"differ in length from group to group: {row['least']} to {row['most']} bytes. Give the arrays one "
                "length (pad or cut them in Spark), or build a model whose weights do not depend on it."
            )
    except BaseException:
        if folder is None:
            kept.unpersist()
        else:
            delete_folder(spark, folder)
        raise
    # From the workers of this job.
    template: Template = pickle.loads(bytes(row["template"]))  # noqa: S301
    models = GroupModels(kept, template, group_names, features, is_single, row["groups"], row["failed"])
    if path is not None:
        models.save_description(path)
    return models
