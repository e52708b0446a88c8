"""Reports the progress of ``fit`` through a callback that the training function does not see."""

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..data.transformations import argument_of_batch
from .fit_hooks import Hook, MethodCall, only
from .keras_api import joined

_log = logging.getLogger(__name__)

STEP_INTERVAL = 0.2  # minimum seconds between two "step" messages

Send = Callable[[dict[str, Any]], None]


class _Receiver:  # one per process
    send: Send | None = None
    lock = threading.Lock()


def report_fit_progress(send: Send) -> Hook:
    """Return a hook that reports the progress of every ``fit``; a later call replaces the receiver.

    The hook leaves no trace in the callbacks, the history or the model. The messages, by their ``"event"``:

    - ``fit_begin``: ``epochs``; ``steps`` per epoch, or None if Keras does not know yet.
    - ``step``: ``epoch`` (from 0), ``step`` (in the epoch, from 1), ``loss`` (or None), ``samples`` (of all workers
      since the fit began, counting partial batches as full ones; None if the batch size is unknown; a dataset can
      declare it in an attribute ``global_batch_size``). Sent at once, then at most once per STEP_INTERVAL.
    - ``epoch_end``: ``epoch``, ``step`` (its last), ``logs`` (floats by name).
    - ``fit_end``, also after an exception.

    Args:
        send: Receives one message at a time, possibly on one of Keras' threads. If it raises, reporting stops for good.
    """
    _Receiver.send = send
    return _report_fit


@only("fit")
@contextlib.contextmanager
def _report_fit(call: MethodCall) -> Iterator[None]:
    module = call.package.callbacks
    # The class is named like Keras' own, because tf_keras times the hooks of all others.
    reporter_class = type("Callback", (_FitReporter, module.Callback), {})
    with contextlib.ExitStack() as cleanup:
        try:
            reporter = reporter_class(call.arguments.get("epochs", 1), global_batch_of(**call.arguments))
            cleanup.callback(reporter.close)
            cleanup.enter_context(joined(call.arguments, reporter, module.CallbackList))
        except Exception:  # most likely wrong arguments, which Keras explains best
            _log.debug("this fit does not report its progress", exc_info=True)
        yield


def _suppressing_errors(hook: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(hook)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            hook(*args, **kwargs)
        except Exception:  # must not affect training
            _Receiver.send = None
            _log.debug("progress is no longer reported", exc_info=True)

    return guarded


class _FitReporter:
    """The callback, without its base class, which depends on the Keras in use."""

    ignores_step_logs = True  # the chief's own logs suffice for display
    async_safe = True  # Keras 3: a step need not wait for the values of its logs
    _supports_tf_logs = True  # tf_keras: logs need not be converted to numbers

    def __init__(self, epochs: int, batch_size: int | None) -> None:
        super().__init__()
        self._epochs, self._batch_size = epochs, batch_size
        self._epoch = self._step = self._steps_before = 0
        self._next_message, self._open = 0.0, False

    @_suppressing_errors
    def on_train_begin(self, logs: object = None) -> None:
        params = getattr(self, "params", None) or {}  # not set if it was added to the caller's CallbackList
        self._open = True
        self._report("fit_begin", epochs=params.get("epochs", self._epochs), steps=params.get("steps"))

    @_suppressing_errors
    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        self._steps_before += self._step
        self._epoch, self._step = epoch, 0

    @_suppressing_errors
    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._step = max(self._step, batch + 1)  # calls from several threads may come out of order
        if (now := time.monotonic()) >= self._next_message:
            self._next_message = now + STEP_INTERVAL
            samples = self._batch_size and self._batch_size * (self._steps_before + self._step)
            self._report("step", epoch=self._epoch, step=self._step, loss=floats_of(logs).get("loss"), samples=samples)

    @_suppressing_errors
    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._report("epoch_end", epoch=epoch, step=self._step, logs=floats_of(logs))

    @_suppressing_errors
    def close(self) -> None:
        self._report("fit_end")

    def _report(self, event: str, **details: object) -> None:
        with _Receiver.lock:
            if self._open and _Receiver.send is not None:
                _Receiver.send({"event": event, **details})
            self._open = self._open and event != "fit_end"  # a thread of Keras may still call a hook


def floats_of(logs: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the numeric ones among the logs that Keras passes to callbacks, as floats."""
    numbers = {}
    for name, value in (logs or {}).items():
        with contextlib.suppress(Exception):  # a vector, a string, or whatever a callback has added
            numbers[name] = float(value)
    return numbers


def global_batch_of(x: Any = None, y: Any = None, batch_size: int | None = None, **other: object) -> int | None:
    """Return the number of rows per step over all workers, if the arguments of ``fit`` show it; otherwise None."""
    if batch_size or y is not None:  # arrays, with Keras' default
        return batch_size or 32
    try:
        return argument_of_batch(x)[0] or None
    except Exception:  # fit accepts many kinds of data; this covers the most common ones
        return None
