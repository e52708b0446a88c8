"""Loads models in Spark's Python worker."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import tensorflow as tf

from ..errors import ConfigurationError, DistributorError, SerializationError
from ..formatting import one_line
from ..runtime.process_tools import environment
from ..training.keras_api import keras_of, package_of_version
from .features import Input, Inputs
from .model import ModelSpec, archive_library


@dataclass
class LoadedModel:
    """A model, independent of the format in which it was saved.

    Attributes:
        call: Calls the model with a tensor, or a list or dict of tensors, and returns its result.
        inputs: The model's inputs.
        output_names: The names that the model declares for its outputs; None if it declares none.
        owner: An object that must stay alive as long as ``call`` is used.
        autograph: Whether TensorFlow should convert Python's ``if`` and ``while`` in the model, as ``model.predict``
            does in tf_keras but not in Keras 3.
    """

    call: Callable[[Any], Any]
    inputs: Inputs
    output_names: Sequence[str] | None = None
    owner: object = None
    autograph: bool = False


def load(spec: ModelSpec, read: Callable[[], bytes]) -> LoadedModel:
    """Load a model.

    Args:
        spec: The description of the model.
        read: Returns the model's bytes.

    Raises:
        SerializationError: If the model cannot be loaded.
    """
    try:
        if spec.kind == "url":
            return _load_url(spec)
        with tempfile.TemporaryDirectory(prefix="spark-tensorflow-") as folder:
            if spec.kind != "saved_model":
                return _load_file(spec, folder, read())
            with zipfile.ZipFile(io.BytesIO(read())) as archive:
                archive.extractall(folder)
            return _load_saved_model(folder)
    except DistributorError:
        raise
    except Exception as error:
        raise SerializationError(
            f"The model cannot be loaded on the executors ({spec.url or spec.kind}): {one_line(error)}\nPass custom "
            "classes and functions that it uses as custom_objects={'Name': Name}. If you trust a file with Lambda "
            "layers, pass safe_mode=False. If another version of Keras wrote the file, install that version."
        ) from error


def _load_url(spec: ModelSpec) -> LoadedModel:
    """Load a model through TensorFlow's file systems, only some of which Keras supports."""
    if tf.io.gfile.isdir(spec.url):
        return _load_saved_model(spec.url)
    with tf.io.gfile.GFile(spec.url, "rb") as file:
        data = file.read()
    with tempfile.TemporaryDirectory(prefix="spark-tensorflow-") as folder:
        library = archive_library(data)
        kind = "h5" if library is None else "keras"
        return _load_file(replace(spec, kind=kind, library=spec.library or library or ""), folder, data)


def load_keras(spec: ModelSpec, data: bytes) -> Any:
    """Load the content of a ``.keras`` file as a Keras model, compiled if it was compiled when saved.

    Raises:
        SerializationError: If the file cannot be loaded.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="spark-tensorflow-") as folder:
            return _load_model(spec, folder, data, is_compiled=True)
    except Exception as error:
        raise SerializationError(
            f"The model cannot be loaded: {one_line(error)}\nIf another version of Keras wrote it, install that "
            "version; custom layers need a get_config() that returns the arguments of their __init__."
        ) from error


def _load_file(spec: ModelSpec, folder: str, data: bytes) -> LoadedModel:
    return from_keras(_load_model(spec, folder, data, is_compiled=False))


def _load_model(spec: ModelSpec, folder: str, data: bytes, *, is_compiled: bool) -> Any:
    path = os.path.join(folder, f"model.{spec.kind}")
    with open(path, "wb") as file:
        file.write(data)
    keras = _import_keras(spec.library or ("keras" if spec.kind == "keras" else _h5_library(path)))
    # The pickle comes from the driver, as part of the Spark task.
    custom_objects = pickle.loads(spec.custom_objects) if spec.custom_objects else {}  # noqa: S301
    options = {"safe_mode": spec.safe_mode} if spec.kind == "keras" else {}
    with keras.saving.custom_object_scope(custom_objects):
        return keras.models.load_model(path, compile=is_compiled, **options)


def _h5_library(path: str) -> str:
    """Return the package that wrote an .h5 file, according to the version in the file."""
    import h5py  # type: ignore[import-untyped]

    with h5py.File(path) as file:
        version = file.attrs.get("keras_version", "")
    version = version.decode() if isinstance(version, bytes) else str(version)
    return package_of_version(version)


def _import_keras(name: str) -> ModuleType:
    """Import tf_keras if it is requested and installed; otherwise, Keras 3 with the TensorFlow backend."""
    if name == "tf_keras":
        with contextlib.suppress(ImportError):  # Keras 3 can read many of tf_keras' files
            import tf_keras

            return tf_keras  # type: ignore[no-any-return]
    with environment({"KERAS_BACKEND": "tensorflow"}):
        import keras
    return keras  # type: ignore[no-any-return]


def from_keras(model: Any) -> LoadedModel:
    """Wrap a model of Keras 3 or tf_keras."""

    def call(features: object) -> object:
        return model(features, training=False)

    names = getattr(model, "output_names", None)
    return LoadedModel(call, _keras_inputs(model), names, model, autograph=keras_of(model) == "tf_keras")


def _keras_inputs(model: Any) -> Inputs:
    tensors = getattr(model, "inputs", None)
    if not tensors:
        return Inputs("unknown")
    try:
        structure = model.input
    except (AttributeError, ValueError):  # some kinds of models have no single input structure
        structure = None
    if isinstance(structure, dict):
        if not all(hasattr(each, "shape") for each in structure.values()):
            return Inputs("unknown")  # column names cannot be matched to nested dicts
        return Inputs("dict", tuple(_input(name, tensor) for name, tensor in structure.items()))
    inputs = tuple(_input(tensor.name.split(":")[0], tensor) for tensor in tensors)
    return Inputs("tensor" if len(inputs) == 1 else "list", inputs)


def _input(name: str, tensor: Any) -> Input:
    dtype = getattr(tensor.dtype, "name", str(tensor.dtype))
    if tensor.shape is None or getattr(tensor.shape, "rank", 0) is None:
        return Input(name, None, dtype)
    dims = None if getattr(tensor, "ragged", False) else tuple(tensor.shape)[1:]
    return Input(name, dims, dtype)


def _load_saved_model(path: str) -> LoadedModel:
    model = tf.saved_model.load(path)
    signatures = getattr(model, "signatures", {})
    chosen = "serving_default" if "serving_default" in signatures else next(iter(signatures), None)
    if chosen is None or (chosen != "serving_default" and len(signatures) > 1):
        raise ConfigurationError(
            f"The SavedModel has no signature 'serving_default'; it has {sorted(signatures) or 'none'}. Export it with "
            "model.export(path), or tf.saved_model.save(module, path, signatures=module.function)."
        )
    function = signatures[chosen]
    specs = function.structured_input_signature[1]
    inputs = tuple(_input(name, specs[name]) for name in sorted(specs))
    return LoadedModel(lambda features: function(**features), Inputs("dict", inputs), None, model)
