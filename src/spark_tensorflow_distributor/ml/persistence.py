"""Saves and loads estimators and models, in the layout of ``pyspark.ml``.

Below the path there are ``metadata`` (JSON, as pyspark.ml writes it), ``model.keras`` for a model or for an estimator's
``model``, and ``objects.pickle`` with functions and other values that JSON cannot hold, if there are any.
"""

import base64
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import pyspark
from pyspark.ml.base import Estimator
from pyspark.ml.util import DefaultParamsReader, DefaultParamsWriter, MLReadable, MLReader, MLWritable, MLWriter

from ..errors import SerializationError
from ..runtime.driver.spark import is_connect
from . import files
from .functions import dump_objects, load_objects, versions
from .params import OBJECT_PARAMS, UNSAVED_PARAMS
from .summary import TrainingSummary
from .task import TrainedModel

if TYPE_CHECKING:
    from pyspark.ml.param import Params

    from .model import KerasModel

T = TypeVar("T", bound="MLReadable[Any]")
S = TypeVar("S", bound="Saved")

_MODEL, _OBJECTS = "model.keras", "objects.pickle"
# The entry in the metadata for what is not a Param.
_ENTRY = "keras"


class _Writer(MLWriter):
    """Saves the Params of an estimator or a model.

    Args:
        instance: The estimator or model.
    """

    def __init__(self, instance: "Params") -> None:
        super().__init__()
        self.instance = instance

    def _handleOverwrite(self, path: str) -> None:
        if not is_connect(self.sparkSession):
            super()._handleOverwrite(path)
            return
        from pyspark.ml.util import invoke_helper_attr  # Spark 4, the first with pyspark.ml on Connect

        invoke_helper_attr("handleOverwrite", path, True)

    def saveImpl(self, path: str) -> None:
        """Save to a path that does not exist; see ``save`` and ``overwrite``.

        Raises:
            SerializationError: The path exists, or something cannot be saved.
        """
        spark = self.sparkSession
        if files.path_exists(spark, path):
            raise _exists(path)
        plain, objects = _split(self.instance)
        entry: dict[str, Any] = {"versions": versions(), "storedAs": files.format_of(spark), "objects": sorted(objects)}
        pickled = dump_objects(objects) if objects else b""
        entry.update(self._facts())
        try:  # metadata first: over Spark Connect, this finds out whether the path exists
            DefaultParamsWriter.saveMetadata(self.instance, path, _owner(spark), {_ENTRY: entry}, plain)
        except Exception as error:
            if "PATH_ALREADY_EXISTS" in str(error):
                raise _exists(path) from error
            raise
        if pickled:
            files.write_file(spark, f"{path.rstrip('/')}/{_OBJECTS}", pickled)
        self._save_data(path.rstrip("/"))

    def _facts(self) -> dict[str, Any]:
        """Return what the metadata holds besides Params."""
        return {}

    def _save_data(self, path: str) -> None:
        """Save what is not in the metadata."""


class KerasEstimatorWriter(_Writer):
    """Saves an estimator, with its functions."""


class KerasModelWriter(_Writer):
    """Saves a model: its Params, history and class names, and the Keras model as a ``.keras`` file."""

    def __init__(self, instance: "KerasModel") -> None:
        super().__init__(instance)
        self.model = instance

    def _facts(self) -> dict[str, Any]:
        facts = asdict(self.model.trained)
        del facts["archive"]
        return {
            "model": {**facts, "custom_objects": base64.b64encode(facts["custom_objects"]).decode()},
            "epochs": list(self.model.summary.epochs),
            "history": self.model.summary.history,
            "classNames": self.model._class_names,
            "numClasses": self.model._num_classes,
        }

    def _save_data(self, path: str) -> None:
        files.write_file(self.sparkSession, f"{path}/{_MODEL}", self.model.trained.archive)


class _Reader(MLReader[T]):
    """Loads an estimator or a model.

    Args:
        cls: Its class.
    """

    def __init__(self, cls: type[T]) -> None:
        super().__init__()
        self._cls = cls

    def load(self, path: str) -> T:
        """Load from a path.

        Raises:
            SerializationError: The path contains something else, or functions that do not load here.
        """
        spark, path = self.sparkSession, path.rstrip("/")
        metadata = DefaultParamsReader.loadMetadata(path, _owner(spark))
        expected = f"{self._cls.__module__}.{self._cls.__name__}"
        if metadata["class"] != expected:
            raise SerializationError(
                f"{path} contains a {metadata['class']}, not a {expected}. Use the load() of its class."
            )
        instance: Any = self._cls()
        instance._resetUid(metadata["uid"])
        DefaultParamsReader.getAndSetParams(instance, metadata)
        entry = metadata[_ENTRY]
        if entry["objects"]:
            objects_path = f"{path}/{_OBJECTS}"
            data = files.read_file(spark, objects_path, entry["storedAs"])
            instance._set(**load_objects(data, entry["versions"], objects_path))
        self._load_data(instance, path, entry)
        return instance  # type: ignore[no-any-return]

    def _load_data(self, instance: Any, path: str, entry: dict[str, Any]) -> None:
        """Load what is not in the metadata."""


class KerasEstimatorReader(_Reader[Any]):
    """Loads an estimator."""


class KerasModelReader(_Reader[Any]):
    """Loads a model. This needs no TensorFlow."""

    def _load_data(self, instance: Any, path: str, entry: dict[str, Any]) -> None:
        archive = files.read_file(self.sparkSession, f"{path}/{_MODEL}", entry["storedAs"])
        facts = {**entry["model"], "custom_objects": base64.b64decode(entry["model"]["custom_objects"])}
        summary = TrainingSummary(entry["history"], entry["epochs"])
        instance._set_trained(TrainedModel(archive, **facts), summary, entry["classNames"], entry["numClasses"])


class Saved(MLWritable, MLReadable[Any]):
    """What can be saved and loaded, by the class's writer and reader."""

    _writer: ClassVar[type[_Writer]]
    _reader: ClassVar[type[_Reader[Any]]]

    def write(self) -> _Writer:
        """Return a writer; ``save(path)`` is a shortcut."""
        return self._writer(self)  # type: ignore[arg-type]

    @classmethod
    def read(cls) -> "_Reader[Any]":
        """Return a reader; ``load(path)`` is a shortcut."""
        return cls._reader(cls)

    @classmethod
    def load(cls: type[S], path: str) -> S:
        """Load from a path; a shortcut of ``read().load(path)``."""
        return cls.read().load(path)  # type: ignore[no-any-return]


def _split(instance: "Params") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the Params to save that were set: those that JSON can hold, and the others."""
    plain: dict[str, Any] = {}
    objects: dict[str, Any] = {}
    # A model no longer trains, so loading it must not require the modules that its estimator sent to the workers.
    unsaved = UNSAVED_PARAMS if isinstance(instance, Estimator) else (*UNSAVED_PARAMS, "pyModules")
    for param in filter(instance.isSet, instance.params):
        if param.name in unsaved:
            continue
        value = instance.getOrDefault(param)
        is_plain = param.name not in OBJECT_PARAMS or (param.name in ("modelParams", "pyModules") and _is_json(value))
        (plain if is_plain else objects)[param.name] = value
    return plain, objects


def _exists(path: str) -> SerializationError:
    return SerializationError(
        f"The path {path} already exists. To replace what is there, save with .write().overwrite().save({path!r})."
    )


def _is_json(value: Any) -> bool:
    """Return whether a value survives a round trip through JSON, which has no tuples and only text as keys."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False


def _owner(spark: Any) -> Any:
    """Return what PySpark's functions for metadata take: the SparkContext before version 4, then the session."""
    return spark.sparkContext if int(pyspark.__version__.split(".")[0]) < 4 else spark
