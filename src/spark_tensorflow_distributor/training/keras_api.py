"""The Keras package in use, and tools for wrapping its methods."""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, Literal

from ..errors import ConfigurationError

_log = logging.getLogger(__name__)

LEAST_KERAS = "3.10"

KerasName = Literal["keras", "tf_keras"]

_broken: set[str] = set()


def selected_keras(env: Mapping[str, str] | None = None) -> KerasName:
    """Return the name of the package behind ``tf.keras``: Keras 3, unless ``TF_USE_LEGACY_KERAS`` selects tf_keras.

    Args:
        env: The environment of the process in question; None for this one's.
    """
    value = (os.environ if env is None else env).get("TF_USE_LEGACY_KERAS")
    return "tf_keras" if value in ("true", "True", "1") else "keras"  # as tensorflow/__init__.py compares it


def package_of_version(version: str) -> KerasName:
    """Return the package that a version of Keras is of: tf_keras continues Keras 2."""
    return "tf_keras" if version.startswith("2.") else "keras"


def major_and_minor(version: str) -> tuple[int, ...]:
    """Return a version's major and minor numbers; an unusual version counts as newer than any other."""
    parts = version.split(".")[:2]
    return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else (1 << 16,)


def keras_of(value: object) -> KerasName | Literal[""]:
    """Return the name of the package that a model or variable belongs to; "" if it is not a Keras object."""
    roots = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    return "keras" if "keras" in roots else "tf_keras" if "tf_keras" in roots else ""


def keras_packages() -> list[ModuleType]:
    """Return the Keras packages that this process may train with: the one behind ``tf.keras``, and the other if loaded.

    The first is imported if it is installed, which costs nothing after ``import tensorflow``.
    """
    selected = selected_keras()
    other = sys.modules.get("keras" if selected == "tf_keras" else "tf_keras")
    return [package for package in (import_package(selected), other) if hasattr(package, "Model")]  # type: ignore[misc]


def optimizer_variables(optimizer: Any) -> list[Any]:
    """Return an optimizer's variables; [] for None. In tf_keras' legacy optimizers, ``variables`` is a method."""
    variables = getattr(optimizer, "variables", ())
    return list(variables() if callable(variables) else variables)


def optimizer_types() -> tuple[type, ...]:
    """Return the base classes of optimizers, with those of tf_keras' legacy optimizers."""
    modules = [package.optimizers for package in keras_packages()]
    modules += [each.legacy for each in modules if hasattr(each, "legacy")]
    return tuple(each.Optimizer for each in modules if hasattr(each, "Optimizer"))


def keras_for_workers() -> ModuleType | None:
    """Return the package behind ``tf.keras`` if it can train over several workers.

    Returns None if it is not installed, or if Keras 3 uses a backend other than TensorFlow.

    Raises:
        ConfigurationError: If the release of Keras 3 is too old.
    """
    name = selected_keras()
    keras = import_package(name)
    if keras is None or name == "tf_keras":
        return keras
    version = keras.__version__
    if package_of_version(version) != "keras" or keras.backend.backend() != "tensorflow":
        return None
    if major_and_minor(version) < major_and_minor(LEAST_KERAS):
        raise ConfigurationError(
            f"The workers have Keras {version}. Training over several workers needs Keras {LEAST_KERAS} or later. "
            f"Upgrade it on the executors with pip install 'keras>={LEAST_KERAS}', or select tf_keras with "
            "env={'TF_USE_LEGACY_KERAS': '1'}."
        )
    return keras


def import_package(name: str) -> ModuleType | None:
    """Import a package; return None if it is missing or broken."""
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.import_module(name)
    except Exception:  # a broken Keras must not fail a program that may never use it
        if name not in _broken:
            _log.warning("%s is installed but cannot be imported", name, exc_info=True)
        _broken.add(name)
        return None


def by_name(original: Callable[..., Any], replacement: Callable[[inspect.BoundArguments], Any]) -> Callable[..., Any]:
    """Wrap ``original`` with a function that receives the arguments of a call by name.

    A call whose arguments do not match the signature goes to ``original``, which raises the error that the caller
    expects.
    """
    signature = inspect.signature(original)

    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        try:
            call = signature.bind(*args, **kwargs)
        except TypeError:
            return original(*args, **kwargs)
        return replacement(call)

    return method


def defining_class(model_class: type, method: str) -> Any:
    """Return the class in the MRO whose body defines the method. Replacing it there affects all models."""
    return next(base for base in model_class.__mro__ if method in vars(base))


def given_callbacks(given: Any) -> list[Any]:
    """Return the callbacks passed to ``fit``, which takes None, one callback, a sequence, or a Keras CallbackList."""
    if given is None:
        return []
    return list(getattr(given, "callbacks", given if isinstance(given, list | tuple) else [given]))


@contextlib.contextmanager
def joined(arguments: dict[str, Any], callback: Any, list_class: type) -> Iterator[None]:
    """Add a callback to the arguments of ``fit`` for the duration of one call."""
    given = arguments.get("callbacks")
    if not isinstance(given, list_class):
        arguments["callbacks"] = [*given_callbacks(given), callback]
        yield
        return
    callbacks = given.callbacks  # type: ignore[attr-defined]
    callbacks.append(callback)  # a copy of the CallbackList would lose the state that its callbacks share
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the caller has removed it
            callbacks.remove(callback)
