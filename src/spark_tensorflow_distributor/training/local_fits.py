"""Follows the calls to ``fit`` in a process that the library does not own, as with ``local_mode``.

Keras methods are wrapped only while there is a follower, and only calls in the follower's own context are reported:
other threads of the process may train at the same time.
"""

import contextlib
import contextvars
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from .epoch_clock import EpochClock
from .keras_api import by_name, defining_class, joined
from .late_imports import call_after_import
from .progress import global_batch_of

_PACKAGES = ("keras", "tf_keras")

# Receives the entry of an epoch (see EpochClock.entry); returns whether this fit should end now.
EndEpoch = Callable[[dict[str, Any]], bool]


class _Follower:
    """Numbers the calls to ``fit`` in one context."""

    def __init__(self, end_epoch: EndEpoch) -> None:
        self.end_epoch = end_epoch
        self.fits = 0
        self.is_in_fit = False


_follower: contextvars.ContextVar[_Follower | None] = contextvars.ContextVar("follower", default=None)


@contextlib.contextmanager
def follow_fits(end_epoch: EndEpoch) -> Iterator[None]:
    """Report every epoch of every ``fit`` in this context, even with a Keras package that is imported later.

    A ``fit`` that is called by a callback of another ``fit`` is part of the outer one.

    Args:
        end_epoch: Called after each epoch, in the thread that trains.
    """
    with contextlib.ExitStack() as cleanup:
        finder = call_after_import(_PACKAGES, lambda package: cleanup.callback(_wrap(package)))
        cleanup.callback(sys.meta_path.remove, finder)
        for package in [sys.modules[name] for name in _PACKAGES if name in sys.modules]:
            cleanup.callback(_wrap(package))
        token = _follower.set(_Follower(end_epoch))
        try:
            yield
        finally:
            _follower.reset(token)


_lock = threading.Lock()
# Wrapped methods by class: the original, the wrapper, and the number of followers.
_wrapped: dict[type, tuple[Any, Any, int]] = {}


def _wrap(package: ModuleType) -> Callable[[], None]:
    """Wrap a package's ``fit``; return a function that unwraps it when called for the last follower."""
    if not hasattr(package, "Model"):  # not Keras, or still being imported
        return lambda: None
    owner = defining_class(package.Model, "fit")
    with _lock:
        original, wrapper, users = _wrapped.get(owner, (owner.fit, None, 0))
        if wrapper is None:
            wrapper = by_name(original, lambda call: _fit(original, call, package))
            owner.fit = wrapper
        _wrapped[owner] = original, wrapper, users + 1
    return lambda: _unwrap(owner)


def _unwrap(owner: Any) -> None:
    with _lock:
        original, wrapper, users = _wrapped[owner]
        if users > 1:
            _wrapped[owner] = original, wrapper, users - 1
            return
        if vars(owner).get("fit") is wrapper:  # otherwise it was wrapped again, and our wrapper does nothing
            owner.fit = original
        del _wrapped[owner]


def _fit(original: Callable[..., Any], call: inspect.BoundArguments, package: Any) -> Any:
    follower = _follower.get()
    if follower is None or follower.is_in_fit:
        return original(*call.args, **call.kwargs)
    arguments = {name: value for name, value in call.arguments.items() if name in ("x", "y", "batch_size")}
    # The class is named like Keras' own, because tf_keras times the hooks of all others.
    callback_class = type("Callback", (_EpochCallback, package.callbacks.Callback), {})
    callback = callback_class(follower, EpochClock(global_batch_of(**arguments)))
    follower.is_in_fit = True
    try:
        with joined(call.arguments, callback, package.callbacks.CallbackList):
            return original(*call.args, **call.kwargs)
    finally:
        follower.is_in_fit = False
        follower.fits += 1


class _EpochCallback:
    """The callback, without its base class, which depends on the Keras in use."""

    async_safe = True  # Keras 3: a step need not wait for it
    _supports_tf_logs = True  # tf_keras: logs need not be converted to numbers

    def __init__(self, follower: _Follower, clock: EpochClock) -> None:
        super().__init__()
        self._follower, self._clock = follower, clock
        self._steps = 0

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self._steps = 0
        self._clock.begin()

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        if batch >= self._steps:  # calls from several threads may come out of order
            self._clock.after_step(batch + 1 - self._steps)
            self._steps = batch + 1

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self._follower.end_epoch(self._clock.entry(self._follower.fits, epoch, logs)):
            self.model.stop_training = True  # type: ignore[attr-defined]
