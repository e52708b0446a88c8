"""The Keras of this process, whichever it is, and how its methods are replaced."""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal

_log = logging.getLogger(__name__)


def quiet_auto_verbose(is_chief: bool) -> None:
    """Makes ``verbose="auto"`` mean 2 on the chief and 0 elsewhere, for fit, evaluate and predict in this process.

    A worker's output is no terminal: there Keras takes "auto" for 1, and prints many lines an epoch on every rank.
    Explicit values keep their meaning. It applies to Keras 3 and tf_keras, as far as ``keras_packages`` finds them.
    """
    for package in keras_packages():
        for name in ("fit", "evaluate", "predict"):
            owner = defining_class(package.Model, name)
            setattr(owner, name, _with_auto_verbose(getattr(owner, name), 2 if is_chief else 0))


def _with_auto_verbose(original: Callable[..., Any], meant: int) -> Callable[..., Any]:
    def method(call: inspect.BoundArguments) -> Any:
        if call.arguments.get("verbose", "auto") == "auto":
            call.arguments["verbose"] = meant
        return original(*call.args, **call.kwargs)

    return by_name(original, method)


def by_name(original: Callable[..., Any], replacement: Callable[[inspect.BoundArguments], Any]) -> Callable[..., Any]:
    """``replacement`` in the place of ``original``: it gets the arguments of a call by their names.

    Arguments that do not fit go to ``original``: they are the caller's mistake, and Keras has the words for it.
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


def given_callbacks(given: Any) -> list[Any]:
    """The callbacks that a caller of ``fit`` gave: None, one, a list, or a Keras CallbackList."""
    if given is None:
        return []
    return list(getattr(given, "callbacks", given if isinstance(given, list | tuple) else [given]))


@contextlib.contextmanager
def joined(arguments: dict[str, Any], callback: Any, list_class: Any) -> Iterator[None]:
    """Add a callback of ours to those among the arguments of ``fit``, for one call."""
    given: Any = arguments.get("callbacks")
    if not isinstance(given, list_class):
        arguments["callbacks"] = [*given_callbacks(given), callback]
        yield
        return
    given.callbacks.append(callback)  # a copy would divide what its parts share
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the caller has taken it out
            given.callbacks.remove(callback)


def keras_packages() -> list[Any]:
    """The Keras packages that this process may train with: that of ``tf.keras``, and the other one if it is loaded.

    The first is imported if it is installed, which costs nothing after ``import tensorflow``.
    """
    chosen, other = ("tf_keras", "keras") if legacy_selected() else ("keras", "tf_keras")
    return [package for package in (import_package(chosen), sys.modules.get(other)) if hasattr(package, "Model")]


def defining_class(model_class: type, method: str) -> Any:
    """The class whose body has the method that ``model_class`` inherits: replaced there, it is for all models."""
    return next(base for base in model_class.__mro__ if method in vars(base))


def keras_of(value: object) -> Literal["keras", "tf_keras"] | None:
    """Return the name of the package that a model or variable belongs to, or None if it is not a Keras object."""
    roots = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    return "keras" if "keras" in roots else "tf_keras" if "tf_keras" in roots else None


def is_keras_3(model: Any) -> bool:
    """Whether a model is one of Keras 3, and none of tf_keras."""
    return keras_of(model) == "keras"


def selected_keras() -> Literal["keras", "tf_keras"]:
    """Return the name of the package behind ``tf.keras``: Keras 3, unless ``TF_USE_LEGACY_KERAS`` selects tf_keras."""
    return "tf_keras" if os.environ.get("TF_USE_LEGACY_KERAS") in ("1", "true", "True") else "keras"  # as TensorFlow


def legacy_selected() -> bool:
    return selected_keras() == "tf_keras"


def import_package(name: str) -> Any:
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.import_module(name)
    except Exception:  # A broken Keras must not end a program that may never use it.
        _log.warning("%s is installed but cannot be imported", name, exc_info=True)
        return None
