"""Progress of ``fit``, told by a callback that the training function knows nothing of."""

import contextlib
import functools
import inspect
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from .keras_api import defining_class, joined, keras_packages

_log = logging.getLogger(__name__)

STEP_INTERVAL = 0.2  # seconds between two "step" messages, at least
# The steps of a tf.data pipeline that leave a batch as large as it was.
_KEEPERS = ("_Prefetch", "_Map", "_ParallelMap", "_Options", "_Repeat", "_Take", "_Skip", "Cache", "_Shuffle", "_Shard")


class _Receiver:  # one for the process, like the replaced fit
    send: Callable[[dict[str, Any]], None] | None = None
    lock = threading.Lock()


def report_fit_progress(send: Callable[[dict[str, Any]], None]) -> None:
    """Makes every ``fit`` of this process report its progress; a later call replaces the receiver.

    It applies to what ``keras_packages`` finds. Callbacks, history and model keep no trace of it. By their ``"event"``:

    - ``fit_begin``: ``epochs``; ``steps`` of an epoch, or None while Keras does not know.
    - ``step``: ``epoch`` (from 0), ``step`` (in the epoch, from 1), ``loss`` (or None), ``samples`` (of all workers,
      since the fit began, partial batches taken for whole ones; None where the batch size is not known; a dataset can
      tell it by an attribute ``global_batch_size``). The first at once, then at most one in STEP_INTERVAL seconds.
    - ``epoch_end``: ``epoch``, ``step`` (its last), ``logs`` (floats by name).
    - ``fit_end``: without more; also after an exception.

    Args:
        send: takes one message at a time, maybe in a thread of Keras. If it raises, reporting ends for the process.
    """
    _Receiver.send = send
    for package in keras_packages():
        owner = defining_class(package.Model, "fit")
        if not hasattr(owner.fit, "reports_progress"):
            owner.fit = _reporting(owner.fit, package.callbacks)


def _reporting(original: Callable[..., Any], callbacks_module: Any) -> Callable[..., Any]:
    signature = inspect.signature(original)
    # Its name is one of Keras' own, because tf_keras takes the time of the hooks of all others.
    reporter_class = type("Callback", (_FitReporter, callbacks_module.Callback), {})

    @functools.wraps(original)
    def fit(*args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as afterwards:
            try:
                bound = signature.bind(*args, **kwargs)
                reporter = reporter_class(bound.arguments.get("epochs", 1), _global_batch(**bound.arguments))
                afterwards.callback(reporter.close)
                afterwards.enter_context(joined(bound.arguments, reporter, callbacks_module.CallbackList))
                args, kwargs = bound.args, bound.kwargs
            except Exception:  # Wrong arguments, most likely, and Keras has the words for those.
                _log.debug("this fit does not report its progress", exc_info=True)
            return original(*args, **kwargs)

    fit.reports_progress = True  # type: ignore[attr-defined]
    return fit


def _quietly(hook: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(hook)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            hook(*args, **kwargs)
        except Exception:  # Training has nothing to do with it.
            _Receiver.send = None
            _log.debug("progress is no longer reported", exc_info=True)

    return guarded


class _FitReporter:
    """The callback, but for its base class, which is that of the Keras in use."""

    ignores_step_logs = True  # the chief's own are good enough to look at
    async_safe = True  # Keras 3: a step need not wait until its logs are numbers
    _supports_tf_logs = True  # tf_keras: logs need not become numbers at all

    def __init__(self, epochs: int, batch_size: int | None) -> None:
        super().__init__()
        self._epochs, self._batch_size = epochs, batch_size
        self._epoch = self._step = self._steps_before = 0
        self._next_message, self._open = 0.0, False

    @_quietly
    def on_train_begin(self, logs: Any = None) -> None:
        params = getattr(self, "params", None) or {}  # a guest in the caller's CallbackList has none
        self._open = True
        self._tell("fit_begin", epochs=params.get("epochs", self._epochs), steps=params.get("steps"))

    @_quietly
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._steps_before += self._step
        self._epoch, self._step = epoch, 0

    @_quietly
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._step = max(self._step, batch + 1)  # calls from several threads may come out of turn
        if (now := time.monotonic()) >= self._next_message:
            self._next_message = now + STEP_INTERVAL
            samples = self._batch_size and self._batch_size * (self._steps_before + self._step)
            self._tell("step", epoch=self._epoch, step=self._step, loss=_floats(logs).get("loss"), samples=samples)

    @_quietly
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._tell("epoch_end", epoch=epoch, step=self._step, logs=_floats(logs))

    @_quietly
    def close(self) -> None:
        self._tell("fit_end")

    def _tell(self, event: str, **details: Any) -> None:
        with _Receiver.lock:
            if self._open and _Receiver.send is not None:
                _Receiver.send({"event": event, **details})
            self._open = self._open and event != "fit_end"  # a thread of Keras may still be on its way


def _floats(logs: dict[str, Any] | None) -> dict[str, float]:
    numbers = {}
    for name, value in (logs or {}).items():
        with contextlib.suppress(TypeError, ValueError):  # a vector, or a text
            numbers[name] = float(value)
    return numbers


def _global_batch(x: Any = None, y: Any = None, batch_size: int | None = None, **other: Any) -> int | None:
    """The rows of a step on all workers, as far as the arguments of fit tell."""
    if batch_size or y is not None:  # arrays, with Keras' default
        return batch_size or 32
    try:
        while not hasattr(x, "global_batch_size") and type(x).__name__.removesuffix("Dataset") in _KEEPERS:
            (x,) = x._inputs()
        return int(x.global_batch_size if hasattr(x, "global_batch_size") else x._batch_size)
    except Exception:  # fit takes many things; this knows the commonest
        return None
