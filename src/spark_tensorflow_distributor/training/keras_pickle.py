"""Pickles programs and results that may contain Keras models with the user's own classes and functions.

Keras pickles a model as a file, which refers to custom classes and functions only by name. The loading process must
register them first, even if they are in a module that can be imported. Here they travel with the model.

Nothing in this module imports TensorFlow or Keras: a process that has a model has already imported them.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import IO, Any, TypeVar

from ..data.driver_only import refuse_driver_only
from .keras_api import keras_of
from .keras_internals import layers_of
from .private_names import KERAS_REGISTRATION, TF_KERAS_REGISTRATION, PrivateModule

T = TypeVar("T")

# Packages that every process with TensorFlow has, so that their classes and functions need not travel.
_COMMON = {"keras", "tf_keras", "tensorflow", "numpy", "optree", *sys.stdlib_module_names} - {"__main__"}


def is_user_defined(value: Any) -> bool:
    """Return whether a class or function must travel with the model that uses it."""
    module = getattr(value, "__module__", None) or "__main__"
    return module.partition(".")[0] not in _COMMON and value.__name__ != "<lambda>"


def dump(value: Any, file: IO[bytes]) -> None:
    """Pickle a value with PySpark's cloudpickle, together with the classes that its Keras objects need."""
    from pyspark import cloudpickle

    base: Any = cloudpickle.CloudPickler

    class Pickler(base):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            refuse_driver_only(obj)
            reduced = reduce_keras(obj)
            return super().reducer_override(obj) if reduced is None else reduced

    Pickler(file).dump(value)


def dumps(value: Any) -> bytes:
    """Return what :func:`dump` writes."""
    with io.BytesIO() as file:
        dump(value, file)
        return file.getvalue()


def reduce_keras(value: Any) -> tuple[Any, ...] | None:
    """Return the reduction of a Keras object that uses the user's own classes; None for other values."""
    library = keras_of(value)
    registration = {"keras": KERAS_REGISTRATION, "tf_keras": TF_KERAS_REGISTRATION}.get(library)
    if registration is None or registration.loaded() is None or not hasattr(value, "get_config"):
        return None
    with _recording(registration) as found:
        reduced: tuple[Any, ...] = value.__reduce_ex__(4)
    custom_objects = {name: each for name, each in found.items() if is_user_defined(each)}
    # An object with additional state is not saved as a file: its parts are pickled one by one, their classes included.
    return (load_with, (library, custom_objects, *reduced)) if custom_objects and len(reduced) == 2 else reduced


def with_user_classes(library: str, save: Callable[[], T]) -> tuple[T, dict[str, Any]]:
    """Save a Keras object; return the result, and the user's own classes and functions that the file names.

    Args:
        library: The package that the object belongs to, ``"keras"`` or ``"tf_keras"``.
        save: Saves the object.
    """
    registration = KERAS_REGISTRATION if library == "keras" else TF_KERAS_REGISTRATION
    with _recording(registration) as found:
        result = save()
    return result, {name: each for name, each in found.items() if is_user_defined(each)}


def has_complete_configs(model: Any) -> bool:
    """Return whether the user's own layers in a model can be created from what their ``get_config`` returns.

    A wrong False is possible, because Keras saves more of a layer than this. Only variables that a layer's ``__init__``
    creates are created.
    """
    library = keras_of(model)
    for layer in layers_of(model):
        is_functional = any(base.__name__ == "Functional" for base in type(layer).__mro__)  # would create its layers
        if is_functional or not is_user_defined(type(layer)):
            continue
        try:
            config, custom_objects = with_user_classes(library, layer.get_config)
            load_with(library, custom_objects, type(layer).from_config, (config,))
        except Exception:  # of the user's code
            return False
    return True


def load_with(
    library: str, custom_objects: dict[str, Any], load: Callable[..., Any], arguments: tuple[Any, ...]
) -> Any:
    """Load a Keras object that uses the user's own classes; pickles refer to this function by name.

    Args:
        library: The package that the object belongs to, ``"keras"`` or ``"tf_keras"``.
        custom_objects: The user's own classes and functions, by the names under which Keras has saved them.
        load: Loads the object.
        arguments: The arguments of ``load``.
    """
    with importlib.import_module(library).saving.custom_object_scope(custom_objects):
        return load(*arguments)


# Two threads may start runs at the same time, and the replaced function is shared by the whole process.
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def _recording(registration: PrivateModule) -> Iterator[dict[str, Any]]:
    """Collect the classes and functions whose names Keras writes, by their plain and their registered names."""
    module: ModuleType = registration.load()
    found: dict[str, Any] = {}

    with _one_at_a_time:
        original = module.get_registered_name

        def get_registered_name(value: Any) -> Any:
            name = original(value)
            if hasattr(value, "__name__"):
                found[value.__name__] = found[name] = value
            return name

        module.get_registered_name = get_registered_name  # type: ignore[attr-defined]
        try:
            yield found
        finally:
            module.get_registered_name = original  # type: ignore[attr-defined]
