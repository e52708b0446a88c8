"""The Params that the estimators and models share, and their setters and getters."""

import copy
import inspect
from typing import Any, TypeVar

from pyspark.ml.param import Param, Params
from pyspark.ml.param.shared import (
    HasFeaturesCol,
    HasInputCols,
    HasLabelCol,
    HasPredictionCol,
    HasSeed,
    HasValidationIndicatorCol,
    HasWeightCol,
)

from ..data.columns import nearest
from . import converters

P = TypeVar("P", bound="AccessibleParams")


def _param(name: str, doc: str, converter: Any = None) -> "Param[Any]":
    return Param(Params._dummy(), name, doc, converter)


class AccessibleParams(Params):
    """Params that are arguments of the constructor, and have a setter and a getter each.

    The constructor and :meth:`setParams` take Params by keyword. None leaves a Param at its default.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        names = sorted(name for name in dir(cls) if isinstance(getattr(cls, name, None), Param))
        for name in names:
            _add_accessors(cls, getattr(cls, name))
        keywords = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names]
        cls.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]

    def __init__(self, **params: Any) -> None:
        super().__init__()
        self._set_defaults()
        self.setParams(**params)

    def _set_defaults(self) -> None:
        """Set the defaults of the class's Params."""

    def setParams(self: P, **params: Any) -> P:
        """Set several Params by keyword.

        Raises:
            TypeError: There is no such Param, or a value has the wrong type.
        """
        for name in params:
            if not self.hasParam(name):
                hint = nearest(name, [each.name for each in self.params])
                raise TypeError(
                    f"{type(self).__name__} has no Param {name!r}{hint or f'. Its Params are {self._param_names()}'}."
                )
        return self._set(**{name: value for name, value in params.items() if value is not None})

    def _param_names(self) -> str:
        return ", ".join(param.name for param in self.params)

    def _value(self, name: str) -> Any:
        """Return the value of a Param, None if it is not set and has no default."""
        param = self.getParam(name)
        return self.getOrDefault(param) if self.isDefined(param) else None


def _add_accessors(cls: type, param: "Param[Any]") -> None:
    """Give a class the setter and getter of one Param, unless it has them."""
    name, title = param.name, param.name[0].upper() + param.name[1:]

    def setter(self: Any, value: Any) -> Any:
        return self._set(**{name: value})

    def getter(self: Any) -> Any:
        return self.getOrDefault(name)

    for function, verb in ((setter, "set"), (getter, "get")):
        function.__name__ = f"{verb}{title}"
        function.__qualname__ = f"{cls.__qualname__}.{function.__name__}"
        function.__doc__ = f"{verb.capitalize()} the value of :py:attr:`{name}`: {param.doc}"
        if not hasattr(cls, function.__name__):
            setattr(cls, function.__name__, function)


class HasInputs(AccessibleParams, HasFeaturesCol, HasInputCols):
    """Where the features come from."""

    featuresCol = _param(
        "featuresCol",
        "column of the features, a vector or an array of numbers: the model's only input; not used if inputCols is set",
        converters.text,
    )
    inputCols = _param(
        "inputCols",
        "columns of the features: numbers, arrays, vectors or strings. They are matched to the model's inputs by name; "
        "for a model with one input, they are put side by side in one tensor.",
        converters.column_names,
    )

    def input_param(self) -> str:
        """Return the name of the Param that names the features: ``inputCols`` if it is set."""
        return "inputCols" if self._value("inputCols") else "featuresCol"

    def input_columns(self) -> str | list[str]:
        """Return the name of the feature column, or the list of ``inputCols``."""
        return self._value("inputCols") or self._value("featuresCol")  # type: ignore[no-any-return]


class HasTargets(AccessibleParams, HasLabelCol, HasWeightCol, HasPredictionCol):
    """The label, weight and prediction columns."""


class HasPredictBatchSize(AccessibleParams):
    """The size of batches in ``transform``."""

    predictBatchSize = _param(
        "predictBatchSize", "largest number of rows in one call of the model by transform", converters.integer(1)
    )

    def _set_defaults(self) -> None:
        super()._set_defaults()
        self._setDefault(predictBatchSize=4096)


class HasTraining(AccessibleParams, HasSeed, HasValidationIndicatorCol):
    """How the model is made and trained."""

    modelFn = _param(
        "modelFn",
        "function that returns a compiled Keras model. It is called on the workers with modelParams as keyword "
        "arguments, and with those of num_features, num_classes and train_data (a DataShard) that it names.",
        converters.function,
    )
    model = _param(
        "model", "compiled Keras model to train, instead of modelFn; it is not changed itself", converters.keras_model
    )
    modelParams = _param("modelParams", "dict of keyword arguments for modelFn and fitFn", converters.arguments)
    fitFn = _param(
        "fitFn",
        "function that trains on each worker and returns the Keras model, instead of Model.fit. It is called with "
        "modelParams and with those of train_data, validation_data (DataShards), feature_columns, label_column, "
        "weight_column, model (of modelFn or model), callbacks, batch_size, epochs, seed, num_features and "
        "num_classes that it names.",
        converters.function,
    )
    callbacksFn = _param(
        "callbacksFn", "function without arguments that returns a list of Keras callbacks", converters.function
    )
    batchSize = _param("batchSize", "rows per step, on all workers together", converters.integer(1))
    epochs = _param("epochs", "number of passes over the rows", converters.integer(1))
    seed = _param("seed", "seed of the initial weights, dropout and the order of the rows", converters.integer())

    def _set_defaults(self) -> None:
        super()._set_defaults()
        self._setDefault(modelParams={}, batchSize=32, epochs=1, seed=0)


class HasRunner(AccessibleParams):
    """The arguments of ``MirroredStrategyRunner``, which describes them in full."""

    numSlots = _param("numSlots", "number of GPUs, or of CPU workers with useGpu=False", converters.integer(1))
    localMode = _param("localMode", "train in the driver's own process", converters.boolean)
    useGpu = _param("useGpu", "train on the GPUs that Spark schedules", converters.boolean)
    gpuResourceName = _param("gpuResourceName", "name of the GPU resource in Spark's settings", converters.text)
    useCustomStrategy = _param("useCustomStrategy", "fitFn creates its own strategy", converters.boolean)
    maxRestarts = _param("maxRestarts", "how many times to relaunch and resume after a failure", converters.integer(0))
    minSlots = _param("minSlots", "smallest number of slots with which to relaunch", converters.integer(1))
    checkpointDir = _param(
        "checkpointDir",
        "path or URL below which checkpoints are kept, in a folder for each combination of Params and rows. Default: "
        "the driver keeps them.",
        converters.path,
    )
    checkpointEvery = _param(
        "checkpointEvery", "seconds between checkpoints, or a string such as '500 steps'", converters.interval
    )
    startTimeout = _param("startTimeout", "seconds to wait for the workers to start and to meet", converters.seconds)
    stallTimeout = _param("stallTimeout", "seconds without progress after which to fail", converters.seconds)
    logToDriver = _param(
        "logToDriver", "show the workers' output on the driver, or 'logging'", converters.boolean_or_text
    )
    progress = _param("progress", "show a progress bar. Default: only in a terminal or notebook", converters.boolean)
    env = _param("env", "dict of additional environment variables for the workers", converters.variables)
    resourceProfile = _param("resourceProfile", "ResourceProfile of the tasks, for stage-level scheduling; not saved")
    gradientCompression = _param(
        "gradientCompression",
        "'bfloat16' or 'float16': how gradients travel between hosts",
        converters.choice("bfloat16", "float16"),
    )
    pyModules = _param("pyModules", "your own modules and packages to send with each run", converters.modules)
    runCallbacks = _param(
        "runCallbacks",
        "RunCallback objects, called on the driver; each training gets a copy; not saved",
        converters.run_callbacks,
    )
    logDir = _param(
        "logDir",
        "directory on the driver that receives the workers' files, in a folder for each training",
        converters.path,
    )

    def _set_defaults(self) -> None:
        super()._set_defaults()
        self._setDefault(
            numSlots=1,
            localMode=False,
            useGpu=False,
            gpuResourceName="gpu",
            useCustomStrategy=False,
            maxRestarts=0,
            checkpointEvery=30.0,
            startTimeout=600.0,
            logToDriver=False,
        )

    def runner_arguments(self) -> dict[str, Any]:
        """Return the Params as keyword arguments of ``MirroredStrategyRunner``; those without a value are left out."""
        found = {argument: self._value(name) for name, argument in RUNNER_ARGUMENTS.items()}
        if found["env"] is not None:
            found["env"] = dict(found["env"])
        if found["callbacks"] is not None:  # a callback object follows one run at a time
            found["callbacks"] = [copy.copy(each) for each in found["callbacks"]]
        return {argument: value for argument, value in found.items() if value is not None}


# The runner's argument that each Param of HasRunner stands for.
RUNNER_ARGUMENTS = {
    "numSlots": "num_slots",
    "localMode": "local_mode",
    "useGpu": "use_gpu",
    "gpuResourceName": "gpu_resource_name",
    "useCustomStrategy": "use_custom_strategy",
    "maxRestarts": "max_restarts",
    "minSlots": "min_slots",
    "checkpointDir": "checkpoint_dir",
    "checkpointEvery": "checkpoint_every",
    "startTimeout": "start_timeout",
    "stallTimeout": "stall_timeout",
    "logToDriver": "log_to_driver",
    "progress": "progress",
    "env": "env",
    "resourceProfile": "resource_profile",
    "gradientCompression": "gradient_compression",
    "pyModules": "py_modules",
    "runCallbacks": "callbacks",
    "logDir": "log_dir",
}

# Params whose values are objects of Python, which metadata in JSON cannot hold.
OBJECT_PARAMS = ("modelFn", "model", "modelParams", "fitFn", "callbacksFn", "pyModules")
# Params whose values belong to the driver's process, and are not saved.
UNSAVED_PARAMS = ("resourceProfile", "runCallbacks")
