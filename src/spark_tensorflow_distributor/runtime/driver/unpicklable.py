"""Finds the object that prevents a training function from being pickled."""

import dis
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...data.driver_only import DriverOnlyError
from ...data.frames import is_dataframe
from ...formatting import a_type, one_line, sentence
from .program_pickler import pack

_DATAFRAME_HINT = "Pass the DataFrame to run() as a separate keyword argument, and the function receives its rows."
_SPARK_HINT = "Compute with Spark before run(), and pass the result as an argument."
_RUNNER_HINT = (
    "The runner exists only on the driver. A method is pickled with its object, which holds the runner: use a plain "
    "function."
)


def explain(function: Callable[..., Any], kwargs: Mapping[str, Any], error: Exception) -> str:
    """Return the message for a function that cannot be pickled; it names the argument or variable that is the reason.

    Args:
        function: The training function.
        kwargs: Its keyword arguments.
        error: The exception that pickling them raised.
    """
    found = _first_failing(parts_of(function, kwargs), set())
    if found is None:
        return f"The training function cannot be sent to the workers: {sentence(one_line(error))}"
    what, value, failure = found
    kind = f"the class {value.__name__}" if inspect.isclass(value) else a_type(value)
    return f"{what}, {kind}, cannot be sent to the workers: {_reason(value, failure)} {_hint(what, value, failure)}"


def parts_of(
    function: Callable[..., Any], kwargs: Mapping[str, Any], user: str = "the function", users: tuple[Any, ...] = ()
) -> Iterator[tuple[str, Any]]:
    """Yield a description and the value of everything that is pickled with the function.

    Args:
        function: The function.
        kwargs: Its keyword arguments.
        user: What to call the function.
        users: Functions that refer to this one, and whose parts need not be repeated.
    """
    for name, value in kwargs.items():
        yield f"The argument {name!r}", value
    plain = inspect.unwrap(function)
    if inspect.ismethod(plain):
        yield f"The object of the method {plain.__name__!r}", plain.__self__
        plain = plain.__func__
    if not inspect.isfunction(plain):
        yield "The training function", plain
        return
    for name, value in _enclosed(plain):
        yield f"The variable {name!r}, which {user} uses from an enclosing scope", value
        if inspect.isfunction(value) and value not in (plain, *users):
            yield from parts_of(value, {}, repr(value.__name__), (plain, *users))
    for name in sorted(_global_names(plain.__code__) & plain.__globals__.keys()):
        if not inspect.ismodule(value := plain.__globals__[name]):
            yield f"The global variable {name!r}, which {user} uses", value
    for value in (*(plain.__defaults__ or ()), *(plain.__kwdefaults__ or {}).values()):
        yield f"A default value of {user}", value


def _enclosed(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # the variable has no value yet
            continue


def _global_names(code: types.CodeType) -> set[str]:
    """Return the names of the global variables that a function uses, also in its lambdas and inner functions."""
    names = {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_global_names(each) for each in code.co_consts if isinstance(each, types.CodeType)))


def _first_failing(parts: Iterator[tuple[str, Any]], seen: set[int]) -> tuple[str, Any, Exception] | None:
    """Return the first part that cannot be pickled, with the exception.

    For a function or class, this is the variable that it uses, if there is one.
    """
    for what, value in parts:
        if id(value) in seen or (failure := _pickling_error(value)) is None:
            continue
        seen.add(id(value))
        return _first_failing(_inner_parts(value), seen) or (what, value, failure)
    return None


def _inner_parts(value: Any) -> Iterator[tuple[str, Any]]:
    if inspect.isfunction(value):
        yield from parts_of(value, {}, repr(value.__name__))
    elif inspect.isclass(value):
        for each in vars(value).values():
            if inspect.isfunction(plain := inspect.unwrap(getattr(each, "__func__", each))):
                yield from parts_of(plain, {}, repr(plain.__qualname__))


def _pickling_error(value: object) -> Exception | None:
    try:
        pack(value)
    except Exception as error:
        return error
    return None


def _reason(value: object, failure: Exception) -> str:
    if isinstance(failure, DriverOnlyError):
        if failure.value is value:
            return "it exists only on the driver."
        return f"it refers to {a_type(failure.value)}, which exists only on the driver."
    return sentence(one_line(failure).strip().split("\n")[0].rstrip("."))


def _hint(what: str, value: object, failure: Exception) -> str:
    if type(value).__name__ == "MirroredStrategyRunner":
        return _RUNNER_HINT
    if isinstance(failure, DriverOnlyError):
        return _DATAFRAME_HINT if is_dataframe(failure.value) else _SPARK_HINT
    return "Pass the values it is built from instead." if "argument" in what else "Create it inside the function."
