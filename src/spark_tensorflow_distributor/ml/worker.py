"""Trains and evaluates on the workers. TensorFlow is imported there only, since the driver imports this module."""

import importlib
import os
import pickle
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..data.columns import Column
from ..errors import ConfigurationError, DataError
from ..formatting import a_type
from ..inference.features import Inputs, feature_names, select_columns
from ..inference.model import PackedModel
from ..training.keras_api import keras_of, selected_keras
from ..training.keras_pickle import dumps, with_user_classes
from .checks import (
    OF_FEATURES,
    OF_LABELS,
    call_model_fn,
    check_classes,
    check_compiled,
    check_features,
    check_input_names,
    check_label_width,
    check_rows,
    check_weights,
    stacks_columns,
)
from .functions import dump_classes
from .outputs import check_activation, check_loss, declared_width, gives_logits
from .task import OFFERED_TO_FIT_FN, OFFERED_TO_MODEL_FN, TrainedModel, TrainingTask, arguments_for, named_by

if TYPE_CHECKING:
    from ..data.shard import DataShard


def train(
    *,
    task: TrainingTask,
    modelFn: Callable[..., Any] | None,
    model: Any,
    modelParams: Mapping[str, Any],
    fitFn: Callable[..., Any] | None,
    callbacksFn: Callable[[], list[Any]] | None,
    train_data: "DataShard",
    validation_data: "DataShard | None" = None,
    localMode: bool = False,
) -> TrainedModel:
    """Train on this worker's rows; the arguments are named like the Params, because error messages quote them.

    In the driver's own process (``localMode``), the model is the user's object: a copy is trained, whose variables
    belong to the strategy's scope like those of a model that was sent to a worker.

    Raises:
        DataError: A label or a weight is invalid, or the model does not fit the rows.
        ConfigurationError: A user's function does not return what it must.
    """
    importlib.import_module(selected_keras()).utils.set_random_seed(task.seed)
    _check_data(task, {"train": train_data, "validate": validation_data}, is_filled=fitFn is not None)
    if model is not None and localMode:
        # The bytes were written by this very line.
        model = pickle.loads(dumps(model))  # noqa: S301
    offered: dict[str, Any] = {
        "num_features": _num_features(task, train_data),
        "num_classes": task.num_classes,
        "train_data": train_data,
    }
    if modelFn is not None:
        named = {key: offered[key] for key in OFFERED_TO_MODEL_FN}
        # With a fitFn, modelParams are for both: each function gets those that it names.
        params = modelParams if fitFn is None else named_by(modelFn, modelParams)
        model = call_model_fn(modelFn, arguments_for("modelFn", modelFn, params, named), _columns(task, train_data))
        _check_model("modelFn", model)
    if task.is_classifier:
        # fitFn may encode the labels differently.
        check_loss(model) if fitFn is None else check_activation(model)
    _check_labels(task, model, train_data, validation_data)
    callbacks = [] if callbacksFn is None else list(callbacksFn())
    history: Mapping[str, Any] = {}
    if fitFn is None:
        history = _fit(task, model, train_data, validation_data, callbacks)
    else:
        offered |= {
            "validation_data": validation_data,
            "feature_columns": task.features,
            "label_column": task.label,
            "weight_column": task.weight,
            "model": model,
            "callbacks": callbacks,
            "batch_size": task.batch_size,
            "epochs": task.epochs,
            "seed": task.seed,
        }
        named = {key: offered[key] for key in OFFERED_TO_FIT_FN}
        params = modelParams if modelFn is None else named_by(fitFn, modelParams)
        model = fitFn(**arguments_for("fitFn", fitFn, params, named))
        _check_model("fitFn", model)
    return _packed(task, model, history)


def evaluate(*, task: TrainingTask, trained: PackedModel, test_data: "DataShard") -> dict[str, float]:
    """Evaluate on this worker's rows; all workers return the metrics of all rows."""
    from ..inference.loading import load_keras

    _check_data(task, {"evaluate": test_data}, is_filled=False)
    model = load_keras(trained.spec, trained.data)
    if task.is_classifier:
        check_loss(model)
    _check_labels(task, model, test_data)
    data = _dataset(task, model, test_data, shuffle=False)
    found: dict[str, float] = model.evaluate(data, return_dict=True, verbose=0)
    return {name: float(value) for name, value in found.items()}


def _fit(
    task: TrainingTask, model: Any, train_data: "DataShard", validation_data: "DataShard | None", callbacks: list[Any]
) -> Mapping[str, Any]:
    check_compiled(model)
    validation = None if validation_data is None else _dataset(task, model, validation_data, shuffle=False)
    result = model.fit(
        _dataset(task, model, train_data, shuffle=True),
        validation_data=validation,
        epochs=task.epochs,
        callbacks=callbacks,
    )
    return result.history  # type: ignore[no-any-return]


def _dataset(task: TrainingTask, model: Any, shard: "DataShard", *, shuffle: bool) -> Any:
    inputs, stack = _inputs(model), takes_one_tensor(task, model)
    check_features(_columns(task, shard), inputs, is_stacked=stack)
    is_single = isinstance(task.features, str)
    check_input_names(feature_names(task.features), inputs, is_single=is_single, by_order=False)
    # A model's only input gets the only column as it is, whatever their names are.
    is_only = not is_single and len(task.features) == 1 and not stack and inputs.form == "tensor"
    return shard.to_tf(
        task.features[0] if is_only else task.features,
        task.label,
        batch_size=task.batch_size,
        weight_column=task.weight,
        stack=stack,
        shuffle=shuffle,
        seed=task.seed,
    )


def takes_one_tensor(task: TrainingTask, model: Any) -> bool:
    """Return whether the columns of ``inputCols`` go into the model side by side."""
    if isinstance(task.features, str):
        return False
    return stacks_columns(model, _inputs(model).form, len(task.features))


def _inputs(model: Any) -> Inputs:
    from ..inference.loading import from_keras

    return from_keras(model).inputs


def _num_features(task: TrainingTask, shard: "DataShard") -> int | None:
    """Return the number of feature values per row; None if the columns are texts or of varying length."""
    widths = [shard.width_of(name) for name in ([task.features] if isinstance(task.features, str) else task.features)]
    return None if None in widths else sum(width for width in widths if width is not None)


def _columns(task: TrainingTask, shard: "DataShard") -> list[Column]:
    return select_columns(shard.schema.jsonValue(), feature_names(task.features))


def _check_model(param: str, model: object) -> None:
    if not keras_of(model) or not callable(getattr(model, "save", None)):
        raise ConfigurationError(f"{param} returned {a_type(model)}; it must return the Keras model.")


def _check_labels(task: TrainingTask, model: Any, *shards: "DataShard | None") -> None:
    """Check this worker's labels; the first worker to find a wrong one ends the training."""
    if not task.is_classifier:
        _check_label_width(task, model, shards)
        return
    width = None if model is None else declared_width(model)
    classes = None if width is None else max(width, 2)
    if classes is not None and (task.num_classes or 0) > classes:
        raise DataError(
            f"The label column {task.label!r} has {task.num_classes} classes, but the model's output has {width} "
            f"value{'s' if width != 1 else ''} per row. Give its last layer a unit for each class (modelFn may take "
            "num_classes)."
        )
    limit = classes or task.num_classes
    for shard in filter(None, shards):
        for values in shard.numbers(task.label):
            check_classes(task.label, values, limit)


def _check_label_width(task: TrainingTask, model: Any, shards: "Sequence[DataShard | None]") -> None:
    width = None if model is None else declared_width(model)
    for shard in filter(None, shards):
        check_label_width(task.label, shard.width_of(task.label), width)


def _check_data(task: TrainingTask, shards: "Mapping[str, DataShard | None]", *, is_filled: bool) -> None:
    """Check what does not depend on the model.

    Args:
        task: The training.
        shards: The rows by what is done with them; see :func:`check_rows`.
        is_filled: Whether the user's function may fill nulls and pad arrays.

    Raises:
        DataError: There are no rows, there are nulls or arrays of different lengths, or a weight is invalid.
    """
    for what, shard in shards.items():
        if shard is None:
            continue
        check_rows(what, shard.total_rows, is_split="validate" in shards and shards["validate"] is not None)
        if not is_filled:
            shard.check(feature_names(task.features), OF_FEATURES)
            shard.check([task.label, *([task.weight] if task.weight else [])], OF_LABELS)
        for values in shard.numbers(task.weight) if task.weight is not None else ():
            check_weights(f"The weight column {task.weight!r}", values)


def _packed(task: TrainingTask, model: Any, history: Mapping[str, Any]) -> TrainedModel:
    import tensorflow as tf

    library = keras_of(model) or "keras"
    archive, custom_objects = with_user_classes(library, lambda: _archive(model))
    return TrainedModel(
        archive=archive,
        custom_objects=dump_classes(custom_objects),
        library=library,
        stack=takes_one_tensor(task, model),
        width=declared_width(model),
        gives_logits=task.is_classifier and gives_logits(model),
        history={name: [float(each) for each in values] for name, values in history.items()},
        versions={
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            library: importlib.import_module(library).__version__,
        },
    )


def _archive(model: Any) -> bytes:
    with tempfile.TemporaryDirectory(prefix="spark-tensorflow-") as folder:
        path = os.path.join(folder, "model.keras")
        model.save(path)
        with open(path, "rb") as file:
            return file.read()
