"""Every ``fit`` of a training function, saved as it goes and taken up where an earlier attempt was stopped.

A function may call ``fit`` several times; each call has a number, by which a later attempt finds its checkpoints. One
that was complete is not run again: its model gets the weights that it had, and the call returns the history.
"""

import contextlib
import inspect
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, Protocol

from ..context import WorkerContext, set_checkpoints
from ..errors import CheckpointError
from ..training.keras_api import by_name, defining_class, joined, keras_packages
from ..training.step_hooks import hook_step_loops
from . import store
from .fit_session import FitSession
from .interval import CheckpointInterval, parse
from .manual import ManualCheckpoints
from .writer import Writer

_log = logging.getLogger("spark_tensorflow_distributor")
_TELL_SECONDS = 1.0


class FitTracker:
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
        store: store.CheckpointStore | None = None,
        pace: CheckpointInterval | None = None,
        run: str = "",
    ) -> None:
        self.context, self.tell, self.store, self.pace, self.run = context, tell, store, pace, run
        self.writer = None if store is None else Writer(store, self._committed, self.warn)
        self.steps = self._fits = 0
        self._current: FitSession | None = None
        self._failed_at: dict[str, int] | None = None
        self._told = 0.0

    def install(self) -> None:
        """Apply it to every Keras of this process."""
        if not hook_step_loops(self):
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
        self.tell({"type": "written" if isinstance(self.store, store.AtDriver) else "committed", **what})

    def finish(self) -> None:
        """The function has returned: wait for what is still being written."""
        if self.writer is not None:
            self.writer.flush()

    def _keeping(self, original: Callable[..., Any], callbacks_module: Any) -> Callable[..., Any]:
        guard_class = type("Callback", (_Guard, callbacks_module.Callback), {})

        def fit(call: inspect.BoundArguments) -> Any:
            if self._current is not None:  # a fit within a callback of another: part of that one
                return original(*call.args, **call.kwargs)
            self._current = current = FitSession(self, self._fits, call.arguments)
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

    def __init__(self, fit: FitSession) -> None:
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


class Agent(Protocol):
    """The connection to the agent."""

    def send(self, message: dict[str, Any]) -> None: ...
    def send_file(self, message: dict[str, Any], file: BinaryIO) -> None: ...


class Saving:
    """Of one worker.

    Args:
        context: of this worker.
        wanted: where checkpoints are kept, and how often.
        names: which the driver keeps.
        files: descriptors of those, by name.
        agent: who is told.
    """

    def __init__(
        self, context: WorkerContext, wanted: Any, names: Sequence[str], files: Mapping[str, int], agent: Agent
    ) -> None:
        self._wanted, self._context, self._names = wanted, context, names
        self._files, self._agent = files, agent
        self._tracker: Any = None

    @property
    def place(self) -> dict[str, int] | None:
        """Which fit, epoch and step the training is in, or was when it failed."""
        found: dict[str, int] | None = None if self._tracker is None else self._tracker.place()
        return found

    def begin(self) -> None:
        """Watch over ``fit``, and save it if that is wanted.

        Raises:
            CheckpointError: ``checkpoint_dir`` cannot be used.
        """
        wanted = self._wanted
        kept = self._store()
        self._tracker = keeper = FitTracker(self._context, self._agent.send, kept, parse(wanted.every), wanted.run)
        keeper.install()
        if keeper.store is not None and keeper.writer is not None:
            set_checkpoints(ManualCheckpoints(keeper.store, keeper.writer, self._context.is_chief, keeper.warn))

    def _store(self) -> Any:
        wanted = self._wanted
        if wanted.folder is not None:
            folder = store.Folder(wanted.folder, wanted.run)
            self._check(folder)
            return folder
        if wanted.at_driver:
            return store.AtDriver(
                {name: self._files[name] for name in self._names},
                lambda name, file: self._agent.send_file({"type": "commit", "name": name}, file),
            )
        return None

    def _check(self, folder: Any) -> None:
        """What the driver knows to have been saved has to be here."""
        there = folder.names()
        missing = [name for name in self._wanted.expected if name not in there]
        if missing and self._context.is_chief:
            raise CheckpointError(
                f"The checkpoint {folder.where(missing[-1])}, which an earlier attempt of this run has saved, is not "
                f"on {socket.gethostname()}. checkpoint_dir must be a place that all hosts share, as a mounted file "
                "system or a URL; with checkpoint_dir=None the driver keeps them, and nothing need be shared."
            )

    def flush(self) -> None:
        """Wait until all is written."""
        if self._tracker is not None:
            self._tracker.finish()

    def finish(self) -> None:
        """The run has ended well."""
        if self._tracker is not None and self._tracker.store is not None and self._context.is_chief:
            with contextlib.suppress(Exception):  # the next run with this folder would begin with this one's end
                self._tracker.store.finish()
