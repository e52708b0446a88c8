"""``fit`` of an estimator with ``groupCol``."""

import uuid
from typing import TYPE_CHECKING, Any

from ...errors import ConfigurationError
from .fit import fit_groups
from .models import GroupModels

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


# Params of a training on several workers, which would have no effect.
_WITHOUT_EFFECT = (
    "fitFn", "localMode", "useCustomStrategy", "maxRestarts", "minSlots", "checkpointDir", "stallTimeout", "env",
    "resourceProfile", "gradientCompression", "runCallbacks", "logDir", "pyModules",
)  # fmt: skip


def fit_by_group(estimator: Any, dataset: "DataFrame", count: int | None) -> GroupModels:
    """Train one model for each group.

    Args:
        estimator: A :class:`KerasEstimator`.
        dataset: The rows.
        count: The number of classes, if it is known.

    Raises:
        ConfigurationError: A Param has no effect on models of groups.
    """
    value = estimator._value
    for param in _WITHOUT_EFFECT:
        if value(param):
            advice = " Send modules with SparkContext.addPyFile." if param == "pyModules" else ""
            raise ConfigurationError(
                f"{param} has no effect with groupCol, because each model is trained within one Spark task. Clear one "
                f"of the two.{advice}"
            )
    # A folder for each training: those of a CrossValidator share the Param.
    path = value("groupModelsPath")
    return fit_groups(
        dataset,
        value("modelFn") or value("model"),
        group_columns=value("groupCol"),
        feature_columns=estimator.input_columns(),
        label_column=value("labelCol"),
        weight_column=value("weightCol") or None,
        validation_column=value("validationIndicatorCol") or None,
        order_columns=value("groupOrderCol") or (),
        model_params=value("modelParams"),
        callbacks=value("callbacksFn"),
        batch_size=value("batchSize"),
        epochs=value("epochs"),
        shuffle=value("shuffleGroups"),
        seed=value("seed") % (1 << 31),
        is_classifier=estimator._is_classifier,
        num_classes=count,
        num_tasks=value("numGroupTasks"),
        max_group_bytes=value("maxGroupBytes"),
        path=None if path is None else f"{path.rstrip('/')}/{estimator.uid}-{uuid.uuid4().hex[:12]}",
        gpu_resource_name=value("gpuResourceName") if value("useGpu") else "",
    )
