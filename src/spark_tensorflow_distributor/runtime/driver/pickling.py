"""Serialises the user's program; if that fails, the error names the object that caused it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...data.frames import is_dataframe
from ...errors import ConfigurationError, SerializationError
from ...formatting import a_type, sentence
from .program_pickler import PackedProgram, is_accumulator, is_broadcast, pack
from .unpicklable import explain, parts_of


def pack_function(
    function: Callable[..., Any], kwargs: Mapping[str, Any], *, is_connect: bool = False
) -> PackedProgram:
    """Pickle ``(function, kwargs)`` with PySpark's cloudpickle.

    Args:
        function: The training function.
        kwargs: Its keyword arguments, with None in place of each DataFrame: the worker puts its ``DataShard`` there.
        is_connect: Whether the session is one of Spark Connect, which has neither broadcast variables nor accumulators.

    Raises:
        ConfigurationError: ``function`` is not callable or does not accept these arguments.
        SerializationError: Something cannot be pickled; the message names it.
    """
    if not callable(function):
        raise ConfigurationError(_no_function_text(function))
    check_arguments(function, list(kwargs))
    try:
        packed = pack((function, dict(kwargs)))
    except Exception as error:
        raise SerializationError(explain(function, kwargs, error)) from error
    if is_connect and (packed.broadcasts or packed.uses_accumulators):
        raise SerializationError(_shared_variable_text(function, kwargs))
    return packed


def _no_function_text(value: object) -> str:
    # The usual mistake is run(train()), whose value is often None.
    hint = "" if is_dataframe(value) else " Pass the function itself, without calling it: run(train, x=1)."
    return (
        f"run() got {a_type(value)} as its training function; it must be a function or the path of a Python script."
        f"{hint}"
    )


def misplaced_text(function: object, values: Sequence[object]) -> str:
    """Return what to call instead of ``run(function, *values)``."""
    try:
        names = list(inspect.signature(function).parameters) if callable(function) else []
    except (TypeError, ValueError):  # a builtin without a signature
        names = []
    words = [
        f"{names[index] if index < len(names) else 'name'}={_short(value)}" for index, value in enumerate(values[:3])
    ]
    words += ["..."] * (len(values) > 3)
    if isinstance(function, str):
        return f'run() takes the command line of a script as args=[...]: run({function!r}, args=["--x", "1"]).'
    name = getattr(function, "__name__", "train")
    return (
        f"run() takes the arguments of the training function by keyword, but got {a_type(values[0])} by position. Call "
        f"run({name}, {', '.join(words)})."
    )


def _short(value: object) -> str:
    return repr(value) if isinstance(value, int | float | bool | str) and len(repr(value)) < 30 else "..."


def pack_script(path: str, args: Sequence[str]) -> PackedProgram:
    """Pickle a script's path, source and command line.

    Raises:
        ConfigurationError: The script cannot be read, is not valid Python, or an argument is not a string.
    """
    import tokenize

    if isinstance(args, str) or not all(isinstance(arg, str) for arg in args):
        raise ConfigurationError(f"args is {args!r}; it must be a list of strings, like sys.argv[1:].")
    try:
        with tokenize.open(path) as file:  # honours the encoding that the script declares
            source = file.read()
        compile(source, path, "exec", dont_inherit=True)
    except OSError as error:
        raise ConfigurationError(f"The script {path!r} cannot be read on the driver: {sentence(error)}") from error
    except SyntaxError as error:
        raise ConfigurationError(f"The script {path!r} is not valid Python: {sentence(error)}") from error
    return pack((path, source, list(args)))


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
        given = f"with the arguments {', '.join(sorted(names))}" if names else "without arguments"
        raise ConfigurationError(
            f"{name}{signature} cannot be called {given}: {sentence(error)} It gets the keyword arguments of the call, "
            f"as in run({name}, name=value)."
        ) from None


def _shared_variable_text(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> str:
    found = (
        (what, value) for what, value in parts_of(function, kwargs) if is_broadcast(value) or is_accumulator(value)
    )
    what, value = next(found, ("The training function", None))
    kind = "an accumulator" if is_accumulator(value) else "a broadcast variable"
    comma = "," if ", which" in what else ""  # ends the relative clause
    uses = f"{what}{comma} is {kind}" if value is not None else f"{what} uses a broadcast variable or an accumulator"
    return (
        f"{uses} of classic Spark, but this is a Spark Connect session, which has neither. Pass the value "
        "of a broadcast variable as an argument of run(); a large one as a DataFrame, or save it where the executors "
        "can read it. Return what you would add to an accumulator, or run with a classic SparkSession."
    )
