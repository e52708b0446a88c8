"""The user's program as bytes, and who is to blame where that fails."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ...errors import ConfigurationError, SerializationError

_SPARK_HINTS = {
    "SparkSession": "The driver's session does not exist on the workers. Use the data outside of the function.",
    "SparkContext": "The driver's context does not exist on the workers.",
    "DataFrame": "A Spark DataFrame lives in the driver's session. Pass it to run() as a keyword argument of its own, "
    "and the function gets its rows.",
    "RDD": "An RDD lives in the driver's session.",
    "MirroredStrategyRunner": "The runner belongs to the driver. A method of an object that holds it carries it "
    "along: use a plain function.",
}


def pack_function(function: Callable[..., Any], kwargs: Mapping[str, Any], shards: Sequence[str] = ()) -> bytes:
    """``(function, kwargs)``, pickled by value where they cannot be imported on the workers.

    Args:
        function: the training function.
        kwargs: its arguments, except for the DataFrames.
        shards: names of the arguments that are DataFrames; each worker adds its ``DataShard``.

    Raises:
        ConfigurationError: ``function`` is not callable, or does not take these arguments.
        SerializationError: something in them cannot be pickled; the message names it.
    """
    if not callable(function):
        raise ConfigurationError(
            f"run() got a {type(function).__name__} as its training function; it must be a function or the path of "
            "a Python script."
        )
    check_arguments(function, [*kwargs, *shards])
    from pyspark import cloudpickle

    try:
        return bytes(cloudpickle.dumps((function, dict(kwargs))))
    except Exception as error:
        raise SerializationError(_explain(function, kwargs, error)) from error


def pack_script(path: str, args: Sequence[str]) -> bytes:
    """The script's name, text and command line.

    Raises:
        ConfigurationError: there is no such file, it is no Python, or an argument is not a string.
    """
    import tokenize

    from pyspark import cloudpickle

    if isinstance(args, str) or not all(isinstance(arg, str) for arg in args):
        raise ConfigurationError(f"args is {args!r}; it must be a list of strings, as in sys.argv[1:].")
    try:
        with tokenize.open(path) as file:  # honours the encoding that the script declares
            source = file.read()
        compile(source, path, "exec", dont_inherit=True)
    except OSError as error:
        raise ConfigurationError(f"The script {path!r} cannot be read on the driver: {error}.") from error
    except SyntaxError as error:
        raise ConfigurationError(f"The script {path!r} is not Python: {error}.") from error
    return bytes(cloudpickle.dumps((path, source, list(args))))


def check_arguments(function: Callable[..., Any], names: Sequence[str]) -> None:
    """Reject keyword arguments that the function does not take, before asking the cluster for anything.

    Raises:
        ConfigurationError: the call with arguments of these names would raise TypeError.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin: it will tell itself
        return
    try:
        signature.bind(**dict.fromkeys(names))
    except TypeError as error:
        name = getattr(function, "__name__", repr(function))
        raise ConfigurationError(f"{name}{signature} cannot be called with {sorted(names)}: {error}.") from None


def _explain(function: Callable[..., Any], kwargs: Mapping[str, Any], error: Exception) -> str:
    for where, value in _parts(function, kwargs):
        reason = _cannot_pickle(value)
        if reason is not None:
            hint = _SPARK_HINTS.get(type(value).__name__, _default_hint(where))
            return f"{where}, a {type(value).__name__}, cannot be sent to the workers: {reason}. {hint}"
    return f"The training function cannot be sent to the workers: {type(error).__name__}: {error}."


def _default_hint(where: str) -> str:
    return "Create it inside the function." if "argument" not in where else "Pass what it is made from instead."


def _parts(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What travels with the function, each with its name."""
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
        yield f"The variable {name!r}, which the function takes from around it", value
        if inspect.isfunction(value):
            yield from _parts(value, {})
    for name, value in captured.globals.items():
        if inspect.ismodule(value) or inspect.isclass(value):
            continue
        yield f"The global variable {name!r}, which the function uses", value
    for value in plain.__defaults__ or ():
        yield "A default value of the function", value


def _cannot_pickle(value: Any) -> str | None:
    from pyspark import cloudpickle

    try:
        cloudpickle.dumps(value)
    except Exception as error:
        text = str(error).strip().split("\n")[0].rstrip(".")
        return f"{type(error).__name__}: {text}"
    return None
