"""Checks and converts the values of Params. Pure.

``pyspark.ml`` calls a converter whenever a Param is set, and names the Param in front of a ``TypeError``'s text.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from types import ModuleType
from typing import Any

from ..formatting import a_type
from ..training.keras_api import keras_of


def integer(least: int | None = None) -> Callable[[Any], int]:
    """Return a converter to whole numbers of at least ``least``; None for any."""

    def convert(value: Any) -> int:
        is_whole = isinstance(value, Real) and math.isfinite(value) and float(value).is_integer()
        if not is_whole or isinstance(value, bool):
            raise TypeError(f"It is {value!r} ({type(value).__name__}); it must be a whole number.")
        number = int(value)
        if least is not None and number < least:
            raise TypeError(f"It is {value!r}; it must be at least {least}.")
        return number

    return convert


def seconds(value: Any) -> float:
    """Convert to a number of seconds above 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not float(value) > 0:
        raise TypeError(f"It is {value!r}; it must be a number of seconds above 0.")
    return float(value)


def interval(value: Any) -> float | str:
    """Convert to a number of seconds, or keep a string such as ``"500 steps"``."""
    return value if isinstance(value, str) else seconds(value)


def boolean(value: Any) -> bool:
    """Accept a bool, of Python or NumPy."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise TypeError(f"It is {value!r}; it must be True or False.")
    return bool(value)


def boolean_or_text(value: Any) -> bool | str:
    """Accept a bool or a string."""
    return value if isinstance(value, str) else boolean(value)


def text(value: Any) -> str:
    """Accept a string."""
    if not isinstance(value, str):
        raise TypeError(f"It is {a_type(value)}; it must be a string.")
    return str(value)


def path(value: Any) -> str:
    """Accept a path, as a string or an object."""
    return text(os.fspath(value) if isinstance(value, os.PathLike) else value)


def function(value: Any) -> Callable[..., Any]:
    """Accept any callable except a Keras model."""
    if keras_of(value):
        raise TypeError(f"It is {a_type(value)}; it must be a function. To train a model object, set the Param model.")
    if not callable(value):
        raise TypeError(f"It is {a_type(value)}; it must be a function.")
    return value  # type: ignore[no-any-return]


def keras_model(value: Any) -> Any:
    """Accept an object of Keras 3 or tf_keras."""
    if not keras_of(value):
        raise TypeError(
            f"It is {a_type(value)}; it must be a compiled Keras model. For a function that returns one, set modelFn."
        )
    return value


def choice(*allowed: str) -> Callable[[Any], str]:
    """Return a converter that accepts these strings alone."""

    def convert(value: Any) -> str:
        if value not in allowed:
            raise TypeError(f"It is {value!r}; it must be {', '.join(map(repr, allowed[:-1]))} or {allowed[-1]!r}.")
        return str(value)

    return convert


def column_names(value: Any) -> list[str]:
    """Accept the name of a column, or a list of different names."""
    names = [value] if isinstance(value, str) else _items(value, "the name of a column, or a list of names")
    wrong = next((each for each in names if not isinstance(each, str)), None)
    if wrong is not None:
        raise TypeError(f"It contains {wrong!r}; all names of columns must be strings.")
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise TypeError(f"It contains {repeated!r} more than once. Remove the repetition.")
    return [str(name) for name in names]


def _items(value: Any, expected: str) -> list[Any]:
    """Return the items of a list or another collection that is neither text nor a mapping."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError(f"It is {a_type(value)}; it must be {expected}.")
    return list(value)


class Variables(dict[str, str]):
    """Environment variables, whose values may be secrets: as text, in ``explainParams`` or a log, it has names only."""

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{name!r}: ..." for name in self) + "}"


def variables(value: Any) -> Variables:
    """Accept a mapping of strings to strings."""
    found = arguments(value)
    wrong = next((name for name, each in found.items() if not isinstance(each, str)), None)
    if wrong is not None:
        raise TypeError(f"The value of {wrong!r} is {a_type(found[wrong])}; all values must be strings.")
    return Variables(found)


def arguments(value: Any) -> dict[str, Any]:
    """Accept a mapping of names to values, with NumPy's numbers as Python's, so that JSON can hold them."""
    if not isinstance(value, Mapping):
        raise TypeError(f"It is {a_type(value)}; it must be a dict of names to values.")
    wrong = next((name for name in value if not isinstance(name, str)), None)
    if wrong is not None:
        raise TypeError(f"It has the name {wrong!r}; all names must be strings.")
    return {name: _plain(each) for name, each in value.items()}


def _plain(value: Any) -> Any:
    if type(value).__module__ == "numpy" and isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    return bool(value) if type(value).__name__ == "bool_" else value


def modules(value: Any) -> list[Any]:
    """Accept a list of modules, their names or paths."""
    if isinstance(value, ModuleType | os.PathLike | str):
        raise TypeError(f"It is {value!r}; it must be a list of module objects, names of modules, or paths.")
    return _items(value, "a list of module objects, names of modules, or paths")


def run_callbacks(value: Any) -> list[Any]:
    """Accept a list of callbacks; the runner checks what they are."""
    return _items(value, "a list of RunCallback objects")


def numbers(value: Any) -> list[float]:
    """Accept a list of non-negative numbers, at most one of which is 0."""
    given = _items(value, "a list of numbers")
    found = [float(each) if isinstance(each, Real) else math.nan for each in given]
    if any(not each >= 0 for each in found) or found.count(0.0) > 1:
        raise TypeError(f"It is {value!r}; all numbers must be above 0, except that one of them may be 0.")
    return found
