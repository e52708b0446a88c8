"""The wrapper around ``fit``, ``evaluate``, ``predict`` and the methods for single batches, and its hooks."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from .keras_api import by_name, defining_class

METHODS = ("fit", "evaluate", "predict", "train_on_batch", "test_on_batch", "predict_on_batch")


@dataclass
class MethodCall:
    """A call of a model's method.

    Attributes:
        name: One of METHODS.
        model: The model.
        arguments: The arguments of the call by name, ``self`` included; a hook may change them.
        package: The Keras package.
        outer: The call that made this one, if any: ``fit`` evaluates, and callbacks may call any method.
        result: The method's return value; None until it returns.
    """

    name: str
    model: Any
    arguments: dict[str, Any]
    package: ModuleType
    outer: MethodCall | None = None
    result: Any = field(default=None)

    @property
    def is_validation(self) -> bool:
        """Whether ``fit`` itself makes this call, to validate."""
        return self.outer is not None and bool(self.arguments.get("kwargs", {}).get("_use_cached_eval_dataset"))


# Returns a context manager that is entered before a call and left after it.
Hook = Callable[[MethodCall], contextlib.AbstractContextManager[None]]

_current: contextvars.ContextVar[MethodCall | None] = contextvars.ContextVar("method_call", default=None)


def current_call() -> MethodCall | None:
    """Return the innermost call that is running in this context; None if there is none."""
    return _current.get()


def hook_methods(packages: Iterable[ModuleType], hooks: Iterable[Hook]) -> None:
    """Wrap the methods of the models of Keras packages.

    Args:
        packages: ``keras``, ``tf_keras`` or both.
        hooks: In the order in which they are entered; they are left in reverse order.
    """
    in_order = tuple(hooks)
    for package in packages:
        for name in METHODS:
            owner = defining_class(package.Model, name)
            setattr(owner, name, _hooked(getattr(owner, name), package, in_order))


def _hooked(original: Callable[..., Any], package: ModuleType, hooks: tuple[Hook, ...]) -> Callable[..., Any]:
    def method(bound: inspect.BoundArguments) -> Any:
        call = MethodCall(original.__name__, bound.arguments["self"], bound.arguments, package, _current.get())
        token = _current.set(call)
        try:
            with contextlib.ExitStack() as stack:
                for hook in hooks:
                    stack.enter_context(hook(call))
                call.result = original(*bound.args, **bound.kwargs)
                return call.result
        finally:
            _current.reset(token)

    return by_name(original, method)


def only(*names: str) -> Callable[[Hook], Hook]:
    """Restrict a hook to calls of the named methods."""

    def decorate(hook: Hook) -> Hook:
        @functools.wraps(hook)
        def selected(call: MethodCall) -> contextlib.AbstractContextManager[None]:
            return hook(call) if call.name in names else contextlib.nullcontext()

        return selected

    return decorate


def quiet_auto_verbose(is_chief: bool) -> Hook:
    """Return a hook that makes ``verbose="auto"`` mean 2 on the chief and 0 elsewhere.

    A worker's output is not a terminal, so with "auto" Keras would print many lines per epoch on every rank.
    """

    @only("fit", "evaluate", "predict")
    @contextlib.contextmanager
    def auto_verbose(call: MethodCall) -> Iterator[None]:
        if call.arguments.get("verbose", "auto") == "auto":
            call.arguments["verbose"] = 2 if is_chief else 0
        yield

    return auto_verbose


@only("fit")
@contextlib.contextmanager
def quiet_shuffle(call: MethodCall) -> Iterator[None]:
    """Keep Keras from warning that it ignores the default of ``shuffle``, a keyword that datasets do not use."""
    data = call.arguments.get("x")
    if any(base.__name__ == "DatasetV2" for base in type(data).__mro__):  # tf.data.Dataset, without importing it
        call.arguments.setdefault("shuffle", False)
    yield
