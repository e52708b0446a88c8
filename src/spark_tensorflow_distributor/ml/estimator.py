"""What the estimators have in common: training."""

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pyspark.ml.base import Estimator

from ..data.columns import Column
from ..errors import ConfigurationError
from . import columns
from .checks import check_compiled
from .folders import training_folders
from .groups.estimator import fit_by_group
from .groups.params import HasGroups
from .groups.spec import OFFERED as OFFERED_TO_GROUPS
from .outputs import check_loss, declared_width
from .params import HasInputs, HasPredictBatchSize, HasRunner, HasTargets, HasTraining
from .running import waiting_runner
from .summary import TrainingSummary, history_by_metric
from .task import OFFERED_TO_FIT_FN, OFFERED_TO_MODEL_FN, TrainedModel, TrainingTask, arguments_for, named_by
from .worker import train

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from .groups.spark_model import KerasGroupModel
    from .model import KerasModel

_log = logging.getLogger(__name__)


class KerasEstimator(HasInputs, HasTargets, HasTraining, HasPredictBatchSize, HasRunner, HasGroups, Estimator[Any]):
    """Base of the estimators: trains a Keras model on the rows of a DataFrame."""

    _is_classifier: ClassVar[bool]

    def _model_class(self) -> "type[KerasModel]":
        raise NotImplementedError

    def _group_model_class(self) -> "type[KerasGroupModel]":
        raise NotImplementedError

    def _fit(self, dataset: "DataFrame") -> Any:
        columns.check_is_frame(dataset)
        self._check_functions()
        known = self._known_columns(dataset)
        names, count = self._classes(dataset, known)
        if self._value("groupCol"):
            of_groups = self._group_model_class()()
            of_groups._take_groups(fit_by_group(self, dataset, count), names, count)
            of_groups._resetUid(self.uid)
            return self._copyValues(of_groups)
        task = self._task(count)
        frames = self._frames(dataset, known, task)
        names_of_arguments = ("modelFn", "model", "fitFn", "callbacksFn", "modelParams", "localMode")
        arguments = {name: self._value(name) for name in names_of_arguments}
        with training_folders(self, dataset) as folders:
            run, runner = waiting_runner(dataset.sparkSession, self.runner_arguments() | folders)
            trained: TrainedModel = run(train, task=task, **arguments, **frames)
        epochs = [] if runner.report is None else [dict(entry) for entry in runner.report.history]
        history = history_by_metric(epochs) or trained.history
        _warn_of_nan(history.get("loss", ()))
        model = self._model_class()()
        model._set_trained(trained, TrainingSummary(history, epochs, runner.report), names, count)
        model._resetUid(self.uid)
        return self._copyValues(model)

    def _check_functions(self) -> None:
        """Check what can be checked of the user's functions before any work starts.

        Raises:
            ConfigurationError: There is no model, its loss does not fit, or a function does not take its arguments.
            DataError: The model has several outputs.
        """
        model_fn, model, fit_fn = (self._value(name) for name in ("modelFn", "model", "fitFn"))
        name = type(self).__name__
        if model_fn is not None and model is not None:
            raise ConfigurationError(f"{name} has both modelFn and model. Set one of them (clear the other).")
        if model_fn is None and model is None and fit_fn is None:
            raise ConfigurationError(
                f"{name} has no model. Set modelFn, a function that returns a compiled Keras model; or model; or fitFn."
            )
        params = self._value("modelParams")
        if fit_fn is None and model is not None:
            check_compiled(model)
            declared_width(model)
            if self._is_classifier:
                check_loss(model)
            if params:
                raise ConfigurationError(f"modelParams is {params!r}, but a model takes no arguments. Use modelFn.")
        if model_fn is not None and fit_fn is not None:
            used = named_by(model_fn, params) | named_by(fit_fn, params)
            if unused := sorted(set(params) - set(used)):
                raise ConfigurationError(f"modelParams has {', '.join(unused)}, which neither modelFn nor fitFn takes.")
        if model_fn is not None and fit_fn is None:
            offered = OFFERED_TO_GROUPS if self._value("groupCol") else OFFERED_TO_MODEL_FN
            arguments_for("modelFn", model_fn, params, dict.fromkeys(offered))
        if fit_fn is not None and model_fn is None:
            arguments_for("fitFn", fit_fn, params, dict.fromkeys(OFFERED_TO_FIT_FN))

    def _known_columns(self, dataset: "DataFrame") -> dict[str, Column]:
        label, weight = self._value("labelCol"), self._value("weightCol") or None
        params = {self.input_param(): self.input_columns(), "labelCol": label, "weightCol": weight}
        known = columns.known_columns(dataset, params)
        columns.check_label(known[label], "labelCol", is_classifier=self._is_classifier)
        if weight is not None:
            columns.check_weight(known[weight])
        return known

    def _classes(self, dataset: "DataFrame", known: Mapping[str, Column]) -> tuple[list[str] | None, int | None]:
        """Return the names and the number of classes, None if they are not known."""
        label = known[self._value("labelCol")]
        if not self._is_classifier:
            return None, None
        names, count = columns.class_names(dataset, label.name), columns.class_count(dataset, label.name)
        is_wanted = any(_names_argument(self._value(name), "num_classes") for name in ("modelFn", "fitFn"))
        if count is None and is_wanted and "num_classes" not in self._value("modelParams"):
            count = columns.count_classes(dataset, label)
        return names, count

    def _task(self, count: int | None) -> TrainingTask:
        return TrainingTask(
            features=self.input_columns(),
            label=self._value("labelCol"),
            weight=self._value("weightCol") or None,
            batch_size=self._value("batchSize"),
            epochs=self._value("epochs"),
            seed=self._value("seed") % (1 << 31),  # what TensorFlow accepts
            is_classifier=self._is_classifier,
            num_classes=count,
        )

    def _frames(self, dataset: "DataFrame", known: Mapping[str, Column], task: TrainingTask) -> "dict[str, DataFrame]":
        """Return the DataFrames to train on, by the name of ``train``'s argument."""
        as_float = [task.label, *([task.weight] if task.weight else [])]
        indicator = self._value("validationIndicatorCol")
        if not indicator:
            return {"train_data": columns.training_frame(dataset, known, as_float)}
        parts = zip(("train_data", "validation_data"), columns.split_by(dataset, indicator), strict=True)
        return {name: columns.training_frame(part, known, as_float) for name, part in parts}


def _warn_of_nan(loss: Sequence[float]) -> None:
    """Log a warning if the loss has become NaN or infinite, which Keras does not report."""
    bad = next((number for number, value in enumerate(loss, 1) if not math.isfinite(value)), None)
    if bad is not None:
        _log.warning(
            "The loss is %s after epoch %d of %d. Do features or labels contain NaN or infinite values? Fill or drop "
            "them in Spark (nanvl, isnan); else lower the learning rate.",
            loss[bad - 1], bad, len(loss),
        )  # fmt: skip


def _names_argument(function: Callable[..., Any] | None, name: str) -> bool:
    if function is None:
        return False
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return False
