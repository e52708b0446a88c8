"""How a model travels: read, or saved, at the driver; as bytes to the executors.

TensorFlow is not imported here: whoever has a model object has done so already.
"""

import hashlib
import io
import json
import os
import re
import sys
import tempfile
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigurationError, SerializationError
from ..training.keras_api import keras_of, selected_keras

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://")
_KERAS = ("keras", "tf_keras")
# Whose classes and functions need not travel: they are where TensorFlow is.
_COMMON = {*_KERAS, "tensorflow", "numpy", "optree", *sys.stdlib_module_names}


@dataclass(frozen=True)
class ModelSpec:
    """A model, but for its bytes.

    Attributes:
        kind: ``"keras"`` (a .keras archive), ``"h5"``, ``"saved_model"`` (a directory, zipped) or ``"url"``.
        key: equal for equal models.
        library: ``"keras"`` or ``"tf_keras"``, where it is known which one wrote the file; else ``""``.
        url: where the executors find it, for the kind ``"url"``.
        custom: the custom objects by name, pickled; or nothing.
        safe_mode: False lets Keras run Python code that is in the file (Lambda layers).
    """

    kind: str
    key: str
    library: str = ""
    url: str = ""
    custom: bytes = b""
    safe_mode: bool = True


def pack(model: Any, custom_objects: Mapping[str, Any] | None, safe_mode: bool) -> tuple[ModelSpec, bytes]:
    """The model for the journey: what it is, and its bytes (empty for a URL).

    Args:
        model: a Keras model, or a path or URL of a saved one.
        custom_objects: classes and functions that the file names, for a path; added to those found in an object.
        safe_mode: see ``ModelSpec``.

    Raises:
        ConfigurationError: it is no model, there is no such file, or it is in no known format.
        SerializationError: the model, or a class of its, cannot be saved.
    """
    if isinstance(model, str | os.PathLike):
        kind, library, data, url = _read(os.fspath(model))
        custom = dict(custom_objects or {})
    else:
        library = keras_of(model)
        if not library or not callable(getattr(model, "save", None)):
            raise ConfigurationError(
                f"model is a {type(model).__name__}; it must be a Keras model or the path of a saved one. Save a "
                "tf.Module with tf.saved_model.save and pass the path."
            )
        kind, url, data = "keras", "", _save(model)
        custom = {**custom_objects_of(model, library), **(custom_objects or {})}
        safe_mode = False  # the user's own object, from this process
    pickled = _pickle(custom) if custom else b""
    # Whether a URL's content has changed cannot be seen from here: a new call loads anew.
    content = _fingerprint(kind, data) if data else f"{url} {uuid.uuid4()}".encode()
    key = hashlib.sha256(content + pickled + f"{kind} {library} {safe_mode}".encode()).hexdigest()
    return ModelSpec(kind, key, library, url, pickled, safe_mode), data


def _read(path: str) -> tuple[str, str, bytes, str]:
    """Kind, library, bytes, URL."""
    path = path.removeprefix("file://")
    if _URL.match(path):
        return "url", _legacy_library(), b"", path
    path = os.path.expanduser(path)
    if not os.path.exists(path):
        raise ConfigurationError(
            f"There is no model at {path!r} (looked at {os.path.abspath(path)!r}, on the driver). Correct the path, or "
            "give the URL of storage that the executors reach (gs://, s3://, hdfs://)."
        )
    if os.path.isdir(path):
        if not any(os.path.exists(os.path.join(path, f"saved_model.{end}")) for end in ("pb", "pbtxt")):
            inside = ", ".join(sorted(os.listdir(path))[:10]) or "nothing"
            raise ConfigurationError(
                f"The directory {path!r} is no SavedModel: it has no saved_model.pb, but {inside}. Give the directory "
                "that has it (for TensorFlow Serving's layout the one of a version), or a .keras file."
            )
        return "saved_model", "", _zipped(path), ""
    with open(path, "rb") as file:
        data = file.read()
    if data[:8] == b"\x89HDF\r\n\x1a\n" and not path.endswith(".weights.h5"):
        return "h5", _legacy_library(), data, ""
    library = archive_library(data)
    if library is None:
        raise ConfigurationError(
            f"The file {path!r} is neither a .keras nor an .h5 file with a whole model. Save the model with "
            "model.save('model.keras') (weights alone do not say what the model is), or give a SavedModel directory."
        )
    return "keras", library, data, ""


def _fingerprint(kind: str, data: bytes) -> bytes:
    """A hash of what is in a model's file, but for the time at which it was saved."""
    digest = hashlib.sha256()
    if kind == "h5":
        digest.update(data)
        return digest.digest()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in sorted(archive.namelist()):
            if name != "metadata.json":
                digest.update(name.encode() + b"\0" + archive.read(name))
    return digest.digest()


def _legacy_library() -> str:
    return "tf_keras" if selected_keras() == "tf_keras" else ""


def archive_library(data: bytes) -> str | None:
    """Which library wrote a .keras archive; None where it is no such archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            version = json.loads(archive.read("metadata.json")).get("keras_version", "")
    except (zipfile.BadZipFile, KeyError, ValueError):
        return None
    return "tf_keras" if str(version).startswith("2.") else "keras"


def _zipped(folder: str) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:  # weights do not compress
        for parent, _, names in sorted(os.walk(folder)):
            for name in sorted(names):
                path = os.path.join(parent, name)
                # A fixed date: equal models have equal bytes.
                entry = zipfile.ZipInfo(os.path.relpath(path, folder).replace(os.sep, "/"))
                with open(path, "rb") as file:
                    archive.writestr(entry, file.read())
    return target.getvalue()


def _save(model: Any) -> bytes:
    with tempfile.TemporaryDirectory(prefix="spark-tensorflow-") as folder:
        path = os.path.join(folder, "model.keras")
        try:
            model.save(path)
        except Exception as error:
            raise SerializationError(
                f"The model cannot be saved: {type(error).__name__}: {error}\nA class of one's own needs get_config() "
                "for its arguments, and must have been called on data once. Or export the model (model.export(path)) "
                "and pass the path."
            ) from error
        with open(path, "rb") as file:
            return file.read()


def custom_objects_of(model: Any, library: str) -> dict[str, Any]:
    """The classes and functions of a model that are neither Keras' nor TensorFlow's, by the names that Keras knows."""
    saving = sys.modules[library].saving
    found: dict[str, Any] = {}
    for kind in _kinds(model):
        if kind.__module__.split(".")[0] in _COMMON - {"__main__"} or kind.__name__ == "<lambda>":
            continue
        found[kind.__name__] = found[saving.get_registered_name(kind)] = kind
    return found


def _kinds(model: Any) -> Iterator[Any]:
    """All functions and classes of objects in the model's layers, the model included."""
    for layer in model._flatten_layers():
        for value in (layer, *vars(layer).values()):
            is_function = isinstance(value, type(_kinds))
            kind = value if is_function or isinstance(value, type) else type(value)
            if is_function or hasattr(kind, "get_config"):
                yield kind


def _pickle(custom: Mapping[str, Any]) -> bytes:
    from pyspark import cloudpickle

    try:
        return bytes(cloudpickle.dumps(dict(custom)))
    except Exception as error:
        raise SerializationError(
            f"The custom objects {sorted(custom)} cannot be sent to the executors: {type(error).__name__}: {error}. "
            "Something that they use from around them cannot travel: create it inside of them."
        ) from error
