"""Pickles functions by value, so that they load where their modules are not installed."""

import contextlib
import functools
import importlib.metadata
import logging
import platform
import sys
import threading
from collections.abc import Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

from ..errors import SerializationError
from ..formatting import a_type, one_line, sentence
from ..runtime.source_files import is_users_file
from ..training.keras_pickle import dumps
from .fingerprint import contents_of, names_in

_log = logging.getLogger(__name__)

_one_at_a_time = threading.RLock()

_PACKAGES = ("pyspark", "keras", "tf_keras", "tensorflow", "tensorflow-cpu")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that functions and models usually depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def dump_objects(objects: Mapping[str, Any]) -> bytes:
    """Pickle the values of Params; functions and classes of the user's own modules by value.

    Args:
        objects: The values by the Params' names.

    Raises:
        SerializationError: A value cannot be pickled; the message names the Param.
    """
    try:
        with by_value(objects.values()):
            return dumps(dict(objects))
    except Exception as error:
        for name, value in objects.items():
            reason = _error_of(value)
            if reason is not None:
                raise SerializationError(
                    f"The Param {name}, {a_type(value)}, cannot be saved: {sentence(reason)} Create what it uses "
                    "inside the function, or clear the Param before saving."
                ) from error
        raise SerializationError(f"The Params {', '.join(objects)} cannot be saved: {one_line(error)}") from error


def _error_of(value: object) -> str | None:
    try:
        with by_value([value]):
            dumps(value)
    except Exception as error:
        return one_line(error)
    return None


def dump_classes(classes: Mapping[str, Any]) -> bytes:
    """Pickle a model's own classes and functions: by value, or by name if what they refer to cannot be pickled.

    Args:
        classes: The classes and functions, by their names in the model's file.

    Returns:
        The pickled dict; ``b""`` if there are none.
    """
    if not classes:
        return b""
    try:
        with by_value(classes.values()):
            return dumps(dict(classes))
    except Exception as error:  # the training is done, and its model must not be lost
        _log.info("The model's own classes travel by name: %s", one_line(error))
        return dumps(dict(classes))


def load_objects(data: bytes, saved: Mapping[str, str], path: str) -> dict[str, Any]:
    """Load what :func:`dump_objects` has pickled. Like all pickles, it may run any code: load only what you trust.

    Args:
        data: The bytes.
        saved: The versions with which they were written.
        path: Where they were read, for messages.

    Raises:
        SerializationError: They do not load here; the message compares the versions.
    """
    here, there = platform.python_version(), saved.get("python", "")
    if there.split(".")[:2] != here.split(".")[:2]:
        raise SerializationError(
            f"The functions in {path} were saved with Python {there}, and Python {here} cannot load them: their "
            f"bytecode differs between minor versions. Load them with Python {'.'.join(there.split('.')[:2])}, or "
            "build the object again here."
        )
    import pickle

    try:
        found: dict[str, Any] = pickle.loads(data)  # noqa: S301
    except Exception as error:
        now = versions()
        changed = [f"{name} {version} (here {now.get(name, 'not installed')})" for name, version in saved.items()]
        raise SerializationError(
            f"The functions in {path} cannot be loaded: {sentence(one_line(error))} They were saved with "
            f"{', '.join(changed)}. Install what is missing, or the versions with which they were saved."
        ) from error
    return found


@contextlib.contextmanager
def by_value(values: Any) -> Iterator[None]:
    """Pickle functions and classes by value for the duration of the context, if the values' modules are the user's own.

    Args:
        values: The functions and objects that are about to be pickled.
    """
    from pyspark import cloudpickle

    registered = []
    with _one_at_a_time:  # the registry belongs to the process
        try:
            for module in _user_modules(values):
                if module.__name__ not in cloudpickle.list_registry_pickle_by_value():
                    cloudpickle.register_pickle_by_value(module)
                    registered.append(module)
            yield
        finally:
            for module in registered:
                cloudpickle.unregister_pickle_by_value(module)


def _user_modules(values: Any) -> list[ModuleType]:
    """Return the user's modules that the values come from, and those that their functions and classes refer to."""
    found: dict[str, ModuleType] = {}
    seen: dict[int, Any] = {}
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, str | bytes | int | float | None):
            continue
        seen[id(value)] = value  # the reference keeps its id from being used again
        module = _user_module(value)
        if module is not None:
            found[module.__name__] = module
        waiting += _parts(value, is_user_code=module is not None)
    # A module that was itself loaded by value is not a module of this process, and travels by value anyway.
    return [module for name, module in found.items() if name != "__main__" and sys.modules.get(name) is module]


def _user_module(value: Any) -> ModuleType | None:
    """Return the user's module that an object comes from, or is; None if it is not from a module with a file."""
    if isinstance(value, ModuleType):
        module: ModuleType | None = value
    else:
        name = getattr(value, "__module__", None)
        module = sys.modules.get(name if isinstance(name, str) else type(value).__module__)
    file = getattr(module, "__file__", None)
    return module if module is not None and file and is_users_file(file) else None


def _parts(value: Any, *, is_user_code: bool) -> list[Any]:
    """Return what an object contains or refers to, as far as the user's functions and classes may be there.

    Args:
        value: The object.
        is_user_code: Whether it comes from a module of the user.
    """
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, FunctionType):
        used = names_in(value.__code__) & set(value.__globals__) if is_users_file(value.__code__.co_filename) else ()
        found = [value.__globals__[name] for name in used]
        return [*found, *contents_of(value.__closure__ or ()), value.__defaults__, value.__kwdefaults__, vars(value)]
    if isinstance(value, ModuleType):
        return [each for each in vars(value).values() if is_user_code and _user_module(each) is not None]
    if isinstance(value, type):
        is_from_main = value.__module__ == "__main__"
        return [*value.__bases__, *vars(value).values()] if is_user_code or is_from_main else []
    return [type(value), *getattr(value, "__dict__", {}).values()] if is_user_code else [type(value)]
