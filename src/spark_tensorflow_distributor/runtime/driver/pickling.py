"""Serialises the user's program, and names the culprit if that fails."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ...errors import ConfigurationError, SerializationError
from ...formatting import one_line

_SPARK_HINTS = {
    "SparkSession": "A session exists only on the driver. Compute with Spark outside of the function.",
    "SparkContext": "A SparkContext exists only on the driver.",
    "DataFrame": "Pass the DataFrame to run() as a keyword argument of its own, and the function receives its rows.",
    "RDD": "An RDD exists only on the driver.",
    "MirroredStrategyRunner": "The runner exists only on the driver. A method takes its whole object along, and that "
    "object holds the runner: use a plain function.",
}


def pack_function(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> bytes:
    """Pickle ``(function, kwargs)`` with PySpark's cloudpickle.

    Args:
        function: The training function.
        kwargs: Its keyword arguments, with None in place of each DataFrame: the worker puts its ``DataShard`` there.

    Raises:
        ConfigurationError: If ``function`` is not callable or does not accept these arguments.
        SerializationError: Something cannot be pickled; the message names it.
    """
    if not callable(function):
        raise ConfigurationError(
            f"run() got a {type(function).__name__} as its training function; it must be a function or the path of a "
            "Python script."
        )
    check_arguments(function, list(kwargs))
    from pyspark import cloudpickle

    try:
        return bytes(cloudpickle.dumps((function, dict(kwargs))))
    except Exception as error:
        raise SerializationError(_explain(function, kwargs, error)) from error


def pack_script(path: str, args: Sequence[str]) -> bytes:
    """Pickle a script's path, source and command line.

    Raises:
        ConfigurationError: The script cannot be read, is not valid Python, or an argument is not a string.
    """
    import tokenize

    from pyspark import cloudpickle

    if isinstance(args, str) or not all(isinstance(arg, str) for arg in args):
        raise ConfigurationError(f"args is {args!r}; it must be a list of strings, like sys.argv[1:].")
    try:
        with tokenize.open(path) as file:  # honours the encoding that the script declares
            source = file.read()
        compile(source, path, "exec", dont_inherit=True)
    except OSError as error:
        raise ConfigurationError(f"The script {path!r} cannot be read on the driver: {error}.") from error
    except SyntaxError as error:
        raise ConfigurationError(f"The script {path!r} is not valid Python: {error}.") from error
    return bytes(cloudpickle.dumps((path, source, list(args))))


def check_arguments(function: Callable[..., Any], names: Sequence[str]) -> None:
    """Check the names of the function's keyword arguments before any work starts on the cluster.

    Raises:
        ConfigurationError: The call would raise a TypeError.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin without a signature checks its own arguments
        return
    try:
        signature.bind(**dict.fromkeys(names))
    except TypeError as error:
        name = getattr(function, "__name__", repr(function))
        raise ConfigurationError(f"{name}{signature} cannot be called with {sorted(names)}: {error}.") from None


def _explain(function: Callable[..., Any], kwargs: Mapping[str, Any], error: Exception) -> str:
    for what, value in _parts(function, kwargs):
        reason = _pickling_error(value)
        if reason is not None:
            hint = _SPARK_HINTS.get(type(value).__name__, _default_hint(what))
            return f"{what}, a {type(value).__name__}, cannot be sent to the workers: {reason}. {hint}"
    return f"The training function cannot be sent to the workers: {one_line(error)}."


def _default_hint(what: str) -> str:
    return "Pass what it is made from instead." if "argument" in what else "Create it inside the function."


def _parts(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield a description and the value of everything that is pickled with the function."""
    for name, value in kwargs.items():
        yield f"The argument {name!r}", value
    plain = inspect.unwrap(function)
    if inspect.ismethod(plain):
        yield f"The object of the method {plain.__name__!r}", plain.__self__
        plain = plain.__func__
    if not inspect.isfunction(plain):
        yield "The training function", plain
        return
    captured = inspect.getclosurevars(plain)
    for name, value in captured.nonlocals.items():
        yield f"The variable {name!r}, which the function uses from an enclosing scope", value
        if inspect.isfunction(value):
            yield from _parts(value, {})
    for name, value in captured.globals.items():
        if inspect.ismodule(value) or inspect.isclass(value):
            continue
        yield f"The global variable {name!r}, which the function uses", value
    for value in plain.__defaults__ or ():
        yield "A default value of the function", value


def _pickling_error(value: object) -> str | None:
    from pyspark import cloudpickle

    try:
        cloudpickle.dumps(value)
    except Exception as error:
        return one_line(error).strip().split("\n")[0].rstrip(".")
    return None
