"""Every ``fit`` of a training function, saved as it goes and taken up where an earlier attempt was stopped.

A function may call ``fit`` several times; each call has a number, by which a later attempt finds its checkpoints. One
that was complete is not run again: its model gets the weights that it had, and the call returns the history.
"""

import inspect
import logging
import time
from collections.abc import Callable
from typing import Any

from ..context import WorkerContext
from . import vault
from .fit import Fit
from .keras import by_name, defining_class, joined, keras_packages
from .loops import stand_between_steps
from .pace import Pace
from .writer import Writer

_log = logging.getLogger("spark_tensorflow_distributor")
_TELL_SECONDS = 1.0


class Keeper:
    """The fits of this process, one at a time.

    Args:
        context: of this worker.
        tell: takes messages for the driver.
        store: where checkpoints are kept; None for no checkpoints.
        pace: how often.
        run: identifies the run.
    """

    def __init__(
        self,
        context: WorkerContext,
        tell: Callable[[dict[str, Any]], None],
        store: vault.Vault | None = None,
        pace: Pace | None = None,
        run: str = "",
    ) -> None:
        self.context, self.tell, self.store, self.pace, self.run = context, tell, store, pace, run
        self.writer = None if store is None else Writer(store, self._committed, self.warn)
        self.steps = self._fits = 0
        self._current: Fit | None = None
        self._failed_at: dict[str, int] | None = None
        self._told = 0.0

    def install(self) -> None:
        """Apply it to every Keras of this process."""
        if not stand_between_steps(self):
            self.store = self.writer = None
        for package in keras_packages():
            owner = defining_class(package.Model, "fit")
            owner.fit = self._keeping(owner.fit, package.callbacks)

    def place(self) -> dict[str, int] | None:
        """Which fit, epoch and step the training is in, or was when it failed; None outside of ``fit``."""
        return self._failed_at if self._current is None else self._current.place()

    def warn(self, text: str) -> None:
        self.tell({"type": "warning", "text": text})

    def _committed(self, what: dict[str, Any]) -> None:
        # What the driver keeps, the driver knows when it has it.
        self.tell({"type": "written" if isinstance(self.store, vault.AtDriver) else "committed", **what})

    def finish(self) -> None:
        """The function has returned: wait for what is still being written."""
        if self.writer is not None:
            self.writer.flush()

    def _keeping(self, original: Callable[..., Any], callbacks_module: Any) -> Callable[..., Any]:
        guard_class = type("Callback", (_Guard, callbacks_module.Callback), {})

        def fit(call: inspect.BoundArguments) -> Any:
            if self._current is not None:  # a fit within a callback of another: part of that one
                return original(*call.args, **call.kwargs)
            self._current = current = Fit(self, self._fits, call.arguments)
            self._fits += 1
            try:
                current.resume()
                with joined(call.arguments, guard_class(current), callbacks_module.CallbackList):
                    history = original(*call.args, **call.kwargs)
            except BaseException:
                self._failed_at = current.place()
                raise
            finally:
                self._current = None
            self.tell({"type": "step", "steps": self.steps, "at": None})
            return history

        return by_name(original, fit)

    # The guest between the steps.

    def claims_epoch(self) -> bool:
        return self._current is not None and self._current.claims("epoch")

    def claims_fit(self) -> bool:
        return self._current is not None and self._current.claims("fit")

    def first_epoch(self, asked_for: int) -> int:
        found = None if self._current is None else self._current.goes_on_with
        return asked_for if found is None else found

    def begin_epoch(self, epoch: int) -> None:
        if self._current is not None:
            self._current.begin_epoch(epoch)

    def start(self, skip_epochs: Callable[[int, int], int]) -> tuple[int, int]:
        assert self._current is not None
        return self._current.start(skip_epochs)

    def arrive(self) -> None:
        if self._current is not None:
            self._current.arrive()

    def made_iterator(self) -> None:
        if self._current is not None:
            self._current.iterators += 1

    def after_step(self, count: int, *, is_last: bool = False) -> None:
        if self._current is not None:
            self._current.after_step(count, is_last=is_last)
        self.alive()

    def alive(self) -> None:
        self.steps += 1
        now = time.monotonic()
        if now - self._told >= _TELL_SECONDS:
            self._told = now
            self.tell({"type": "step", "steps": self.steps, "at": self.place()})


class _Guard:
    """The callback, but for its base class, which is that of the Keras in use."""

    async_safe = True  # nothing of it is called for each batch
    _supports_tf_logs = True

    def __init__(self, fit: Fit) -> None:
        super().__init__()
        self._fit = fit

    def on_train_begin(self, logs: Any = None) -> None:
        self._fit.restore()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._fit.enter_epoch(epoch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._fit.end_epoch(epoch, logs)

    def on_train_end(self, logs: Any = None) -> None:
        self._fit.end()
