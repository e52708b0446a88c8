"""In Spark's Python worker: TensorFlow's start, and the models that the worker holds."""

import contextlib
import io
import os
import pickle
import sys
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from ..errors import ClusterError, ConfigurationError, DistributorError, SerializationError
from ..runtime import devices
from ..runtime.devices import DEFAULT_ENV
from ..training.autograph_files import keep_no_generated_files
from ..training.keras_api import keras_of
from .features import Input, Inputs
from .model import ModelSpec, archive_library

_KEPT = 2

# Spark uses its Python workers again: a model is loaded once for each of them.
_models: OrderedDict[str, Any] = OrderedDict()


@dataclass
class LoadedModel:
    """A model, whatever it was saved as.

    Attributes:
        call: from a tensor, a list or a dict of them to what the model returns.
        inputs: what it wants.
        output_names: names that it has for its outputs, if any.
        keep: what must live as long as the model.
        autograph: whether TensorFlow should turn Python's ``if`` and ``while`` in it into graphs, as ``model.predict``
            does in tf_keras and does not in Keras 3.
    """

    call: Callable[[Any], Any]
    inputs: Inputs
    output_names: Sequence[str] | None = None
    keep: Any = None
    autograph: bool = False


def hold(spec: ModelSpec, read: Callable[[], bytes], make: Callable[["LoadedModel"], Any]) -> Any:
    """What ``make`` makes of the model, once in each Python worker and model; the last two are held.

    Args:
        spec: the model.
        read: gives its bytes.
        make: called with the loaded model.
    """
    if spec.key not in _models:
        while len(_models) >= _KEPT:
            _models.popitem(last=False)
        _models[spec.key] = make(load(spec, read))
    _models.move_to_end(spec.key)
    return _models[spec.key]


def start_tensorflow(gpu_resource_name: str) -> ModuleType:
    """TensorFlow, with the threads and GPUs that Spark dealt to the task, if this is its first use in the process.

    Raises:
        ClusterError: it is not installed.
    """
    from pyspark import TaskContext

    context = TaskContext.get()
    cpus = int(context.cpus()) if context is not None else 1
    resources = {name: info.addresses for name, info in context.resources().items()} if context is not None else {}
    addresses = resources.get(gpu_resource_name, [])
    gpus = devices.visible_devices(addresses, len(addresses), os.environ.get("CUDA_VISIBLE_DEVICES"))
    is_first = "tensorflow" not in sys.modules
    # The worker is Spark's, and so is its environment: TensorFlow reads these while it starts, and no later.
    defaults = {key: value for key, value in DEFAULT_ENV.items() if key not in os.environ}
    with _environment({**defaults, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}):
        try:
            import tensorflow as tf
        except ImportError as error:
            raise ClusterError(missing_tensorflow(error)) from error
        if is_first:
            _set_up(tf, cpus)
        if context is not None:  # Spark ends its Python workers without Python's exit
            keep_no_generated_files()
    return tf  # type: ignore[no-any-return]


def missing_tensorflow(error: ImportError) -> str:
    """What to tell where TensorFlow cannot be imported."""
    return (
        f"TensorFlow cannot be imported by the executors' Python ({sys.executable}): {error}. Install it for the "
        "interpreter that spark.pyspark.python (or PYSPARK_PYTHON) names on the executors, or let that setting name "
        "the one which has it."
    )


def _set_up(tf: Any, cpus: int) -> None:
    if "TF_NUM_INTRAOP_THREADS" not in os.environ:
        tf.config.threading.set_intra_op_parallelism_threads(cpus)
    if "TF_NUM_INTEROP_THREADS" not in os.environ:
        tf.config.threading.set_inter_op_parallelism_threads(min(2, cpus))
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    tf.config.list_logical_devices()


@contextlib.contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value


def load(spec: ModelSpec, read: Callable[[], bytes]) -> LoadedModel:
    """Load a model. TensorFlow has been started.

    Raises:
        SerializationError: it cannot be loaded here.
    """
    try:
        if spec.kind == "url":
            return _load_url(spec)
        with tempfile.TemporaryDirectory(prefix="spark-tensorflow-") as folder:
            if spec.kind != "saved_model":
                return _load_file(spec, folder, read())
            with zipfile.ZipFile(io.BytesIO(read())) as archive:
                archive.extractall(folder)
            return _saved_model(folder)
    except DistributorError:
        raise
    except Exception as error:
        raise SerializationError(
            f"The model cannot be loaded on the executors ({spec.url or spec.kind}): {type(error).__name__}: {error}\n"
            "Give the classes and functions of your own that it names as custom_objects={'Name': Name}, and "
            "safe_mode=False for a file with Lambda layers that you trust. Where its file was written by another "
            "version of Keras, install that one."
        ) from error


def _load_url(spec: ModelSpec) -> LoadedModel:
    """From storage, by TensorFlow's own file systems; Keras itself knows only some of them."""
    import tensorflow as tf

    if tf.io.gfile.isdir(spec.url):
        return _saved_model(spec.url)
    with tf.io.gfile.GFile(spec.url, "rb") as file:
        data = file.read()
    with tempfile.TemporaryDirectory(prefix="spark-tensorflow-") as folder:
        library = archive_library(data)
        kind = "h5" if library is None else "keras"
        return _load_file(replace(spec, kind=kind, library=spec.library or library or ""), folder, data)


def _load_file(spec: ModelSpec, folder: str, data: bytes) -> LoadedModel:
    path = os.path.join(folder, f"model.{spec.kind}")
    with open(path, "wb") as file:
        file.write(data)
    library = _library(spec.library or ("keras" if spec.kind == "keras" else _library_of_h5(path)))
    custom = pickle.loads(spec.custom) if spec.custom else {}
    options: dict[str, Any] = {"compile": False}
    if spec.kind == "keras":
        options["safe_mode"] = spec.safe_mode
    with library.saving.custom_object_scope(custom):
        return of_keras(library.models.load_model(path, **options))


def _library_of_h5(path: str) -> str:
    """Which library wrote an .h5 file: Keras 2 left its version in it."""
    import h5py  # type: ignore[import-untyped]

    with h5py.File(path) as file:
        version = file.attrs.get("keras_version", "")
    version = version.decode() if isinstance(version, bytes) else str(version)
    return "tf_keras" if version.startswith("2.") else "keras"


def _library(name: str) -> ModuleType:
    """Keras 3 with TensorFlow below it, or tf_keras where that is meant and there."""
    if name == "tf_keras":
        with contextlib.suppress(ImportError):  # Keras 3 can read many of the other's files
            import tf_keras

            return tf_keras  # type: ignore[no-any-return]
    with _environment({"KERAS_BACKEND": "tensorflow"}):
        import keras
    return keras  # type: ignore[no-any-return]


def of_keras(model: Any) -> LoadedModel:
    """A Keras model, of Keras 3 or tf_keras."""

    def call(features: Any) -> Any:
        return model(features, training=False)

    names = getattr(model, "output_names", None)
    return LoadedModel(call, _inputs_of(model), names, model, autograph=keras_of(model) == "tf_keras")


def _inputs_of(model: Any) -> Inputs:
    tensors = getattr(model, "inputs", None)
    if not tensors:
        return Inputs("any")
    try:
        structure = model.input
    except (AttributeError, ValueError):  # some kinds of models have no such thing
        structure = None
    if isinstance(structure, dict) and not all(hasattr(each, "shape") for each in structure.values()):
        return Inputs("any")  # dicts in a dict: the caller's names cannot say where to
    form = "one" if len(tensors) == 1 else "list"
    named = [(tensor.name.split(":")[0], tensor) for tensor in tensors]
    if isinstance(structure, dict):
        form, named = "dict", list(structure.items())
    return Inputs(form, tuple(_input(name, tensor) for name, tensor in named))


def _input(name: str, tensor: Any) -> Input:
    dtype = getattr(tensor.dtype, "name", str(tensor.dtype))
    if tensor.shape is None or getattr(tensor.shape, "rank", 0) is None:
        return Input(name, None, dtype)
    dims = None if getattr(tensor, "ragged", False) else tuple(tensor.shape)[1:]
    return Input(name, dims, dtype)


def _saved_model(path: str) -> LoadedModel:
    import tensorflow as tf

    model = tf.saved_model.load(path)
    signatures = getattr(model, "signatures", {})
    chosen = "serving_default" if "serving_default" in signatures else next(iter(signatures), None)
    if chosen is None or (chosen != "serving_default" and len(signatures) > 1):
        raise ConfigurationError(
            f"The SavedModel has no signature 'serving_default'; it has {sorted(signatures) or 'none'}. Export it with "
            "model.export(path), or tf.saved_model.save(module, path, signatures=module.function)."
        )
    function = signatures[chosen]
    wanted = function.structured_input_signature[1]
    inputs = tuple(_input(name, wanted[name]) for name in sorted(wanted))
    return LoadedModel(lambda feed: function(**feed), Inputs("dict", inputs), None, model)
