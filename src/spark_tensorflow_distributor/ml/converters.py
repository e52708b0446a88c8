"""Checks and converts the values of Params. Pure.

``pyspark.ml`` calls a converter whenever a Param is set, and names the Param in front of a ``TypeError``'s text.
"""

import os
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from types import ModuleType
from typing import Any

from ..formatting import a_type


def integer(least: int | None = None) -> Callable[[Any], int]:
    """Return a converter to whole numbers of at least ``least``; None for any."""

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Real) or int(value) != value:  # type: ignore[call-overload]
            raise TypeError(f"It is {value!r} ({type(value).__name__}); it must be a whole number.")
        number: int = int(value)  # type: ignore[call-overload]
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
    """Accept what can be called."""
    if not callable(value):
        raise TypeError(f"It is {a_type(value)}; it must be a function.")
    return value  # type: ignore[no-any-return]


def texts_by_name(value: Any) -> dict[str, str]:
    """Accept a mapping of strings to strings."""
    found = arguments(value)
    wrong = next((each for each in found.values() if not isinstance(each, str)), None)
    if wrong is not None:
        raise TypeError(f"It has the value {wrong!r}; all values must be strings.")
    return found


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
    if isinstance(value, str | os.PathLike | ModuleType | Mapping):
        raise TypeError(f"It is {value!r}; it must be a list of module objects, names of modules, or paths.")
    return list(value)


def numbers(value: Any) -> list[float]:
    """Accept a list of non-negative numbers, at most one of which is 0."""
    found = [float(each) for each in value]
    if any(not each >= 0 for each in found) or found.count(0.0) > 1:
        raise TypeError(f"It is {value!r}; all numbers must be above 0, except that one of them may be 0.")
    return found
