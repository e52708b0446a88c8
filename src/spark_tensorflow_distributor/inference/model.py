"""Packs a model on the driver to send it to the executors.

This module does not import TensorFlow: a caller with a model object has already imported it.
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
from types import FunctionType
from typing import Any

from ..errors import ConfigurationError, SerializationError
from ..formatting import a_type, one_line, sentence
from ..training.keras_api import keras_of, package_of_version, selected_keras
from ..training.keras_internals import layers_of
from ..training.keras_pickle import is_user_defined

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://")


@dataclass(frozen=True)
class ModelSpec:
    """Describes a model whose bytes are sent separately.

    Attributes:
        kind: ``"keras"`` (a .keras archive), ``"h5"``, ``"saved_model"`` (a zipped directory) or ``"url"``.
        key: A string that is the same for equal models.
        library: The package that wrote the file, ``"keras"`` or ``"tf_keras"``; ``""`` if unknown.
        url: The URL from which the executors load the model, for the kind ``"url"``.
        custom_objects: The pickled dict of custom objects by name, or ``b""``.
        safe_mode: Whether Keras must refuse to run Python code in the file (``Lambda`` layers).
    """

    kind: str
    key: str
    library: str = ""
    url: str = ""
    custom_objects: bytes = b""
    safe_mode: bool = True


@dataclass(frozen=True)
class PackedModel:
    """A model as bytes, and its description; :func:`pack` returns both unchanged."""

    spec: ModelSpec
    data: bytes


def packed_keras(archive: bytes, library: str, custom_objects: bytes) -> PackedModel:
    """Return the content of a trusted ``.keras`` file as a packed model.

    Args:
        archive: The content of the file.
        library: The package that wrote the file, ``"keras"`` or ``"tf_keras"``.
        custom_objects: The pickled dict of custom objects by name, or ``b""``.
    """
    content = _fingerprint("keras", archive) + custom_objects + library.encode()
    key = hashlib.sha256(content).hexdigest()
    return PackedModel(ModelSpec("keras", key, library, "", custom_objects, safe_mode=False), archive)


def pack(model: Any, custom_objects: Mapping[str, Any] | None, safe_mode: bool) -> tuple[ModelSpec, bytes]:
    """Return the description and the bytes of a model; for a URL, the bytes are empty.

    Args:
        model: A Keras model, the path or URL of a saved model, or a ``PackedModel``.
        custom_objects: Custom classes and functions that the model uses, by name; not needed for a model object.
        safe_mode: See ``ModelSpec``.

    Raises:
        ConfigurationError: If ``model`` is not a model, or the file is missing or of an unknown format.
        SerializationError: If the model or one of its custom objects cannot be serialised.
    """
    if isinstance(model, PackedModel):
        return model.spec, model.data
    if isinstance(model, str | os.PathLike):
        kind, library, data, url = _read(os.fspath(model))
        custom = dict(custom_objects or {})
    else:
        library = keras_of(model) or ""
        if not library or not callable(getattr(model, "save", None)):
            raise ConfigurationError(
                f"model is {a_type(model)}; it must be a Keras model or the path of a saved one. To use "
                "a tf.Module, save it with tf.saved_model.save and pass the path."
            )
        kind, url, data = "keras", "", _save(model)
        custom = {**custom_objects_of(model, library), **(custom_objects or {})}
        safe_mode = False  # the user's own object, from this process
    pickled = _pickle(custom) if custom else b""
    # The driver cannot see whether the content of a URL has changed, so each call loads the model again.
    content = _fingerprint(kind, data) if data else f"{url} {uuid.uuid4()}".encode()
    key = hashlib.sha256(content + pickled + f"{kind} {library} {safe_mode}".encode()).hexdigest()
    return ModelSpec(kind, key, library, url, pickled, safe_mode), data


def _read(path: str) -> tuple[str, str, bytes, str]:
    """Return the kind, library, bytes and URL of a saved model."""
    path = path.removeprefix("file://")
    if _URL.match(path):
        return "url", _selected_library(), b"", path
    path = os.path.expanduser(path)
    if not os.path.exists(path):
        raise ConfigurationError(
            f"There is no model at {path!r} ({os.path.abspath(path)!r} on the driver). Correct the path, or pass a URL "
            "that TensorFlow can read on the executors, such as gs://bucket/model.keras."
        )
    if os.path.isdir(path):
        if not any(os.path.exists(os.path.join(path, f"saved_model.{end}")) for end in ("pb", "pbtxt")):
            found = ", ".join(sorted(os.listdir(path))[:10]) or "nothing"
            raise ConfigurationError(
                f"The directory {path!r} is not a SavedModel: it contains no saved_model.pb, but {found}. Pass the "
                "directory that contains it (in TensorFlow Serving's layout, that of a version), or a .keras file."
            )
        return "saved_model", "", _zipped(path), ""
    with open(path, "rb") as file:
        data = file.read()
    if data[:8] == b"\x89HDF\r\n\x1a\n" and not path.endswith(".weights.h5"):
        return "h5", _selected_library(), data, ""
    library = archive_library(data)
    if library is None:
        raise ConfigurationError(
            f"The file {path!r} is neither a .keras file nor an .h5 file with a whole model. Save the model with "
            "model.save('model.keras'), because weights alone do not describe it, or pass a SavedModel directory."
        )
    return "keras", library, data, ""


def _fingerprint(kind: str, data: bytes) -> bytes:
    """Return a hash of a model's file that does not depend on the time at which it was saved."""
    digest = hashlib.sha256()
    if kind == "h5":
        digest.update(data)
        return digest.digest()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in sorted(archive.namelist()):
            if name != "metadata.json":
                digest.update(name.encode() + b"\0" + archive.read(name))
    return digest.digest()


def _selected_library() -> str:
    return "tf_keras" if selected_keras() == "tf_keras" else ""  # otherwise the file itself tells


def archive_library(data: bytes) -> str | None:
    """Return the package that wrote a .keras archive; None if the data is not such an archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            version = json.loads(archive.read("metadata.json")).get("keras_version", "")
    except (zipfile.BadZipFile, KeyError, ValueError):
        return None
    return package_of_version(str(version))


def _zipped(folder: str) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:  # weights hardly compress
        for parent, _, names in sorted(os.walk(folder)):
            for name in sorted(names):
                path = os.path.join(parent, name)
                # ZipInfo has a fixed date, so equal models have equal bytes.
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
                f"The model cannot be saved: {one_line(error)}\nCustom classes need a get_config() that returns their "
                "arguments, and must have been called on data at least once. Alternatively, export the model "
                "(model.export(path)) and pass the path."
            ) from error
        with open(path, "rb") as file:
            return file.read()


def custom_objects_of(model: Any, library: str) -> dict[str, Any]:
    """Return the user's own classes and functions in a model, by their plain and their registered names."""
    saving = sys.modules[library].saving
    found: dict[str, Any] = {}
    for each in _classes_and_functions(model):
        if is_user_defined(each):
            found[each.__name__] = found[saving.get_registered_name(each)] = each
    return found


def _classes_and_functions(model: Any) -> Iterator[Any]:
    """Yield the classes and functions of the model, of its layers, and of their attributes."""
    for layer in layers_of(model):
        for value in (layer, *vars(layer).values()):
            is_function = isinstance(value, FunctionType)
            each = value if is_function or isinstance(value, type) else type(value)
            if is_function or hasattr(each, "get_config"):
                yield each


def _pickle(custom: Mapping[str, object]) -> bytes:
    from pyspark import cloudpickle

    try:
        return bytes(cloudpickle.dumps(dict(custom)))
    except Exception as error:
        raise SerializationError(
            f"The custom objects {sorted(custom)} cannot be sent to the executors: {sentence(one_line(error))} They "
            "use something from an enclosing scope that cannot be pickled. Create it inside them."
        ) from error
