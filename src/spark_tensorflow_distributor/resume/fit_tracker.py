"""Saves every ``fit`` of a training function as it proceeds, and resumes it where an earlier attempt was interrupted.

A function may call ``fit`` several times; a later attempt finds the checkpoints of a call by the call's number. A call
that was complete does not train again: the model gets the saved weights, and the call returns the history.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

from ..context import WorkerContext, set_checkpoints
from ..training.fit_hooks import MethodCall
from ..training.keras_api import joined
from ..training.step_hooks import hook_step_loops
from .agent_link import AgentLink
from .callback_state import Logs
from .fit_saver import Checkpointing
from .fit_session import FitSession
from .manual import ManualCheckpoints
from .resume_point import Position
from .settings import CheckpointSettings, Message
from .store import open_store
from .writer import CheckpointWriter

_REPORT_SECONDS = 1.0


def track_fits(
    settings: CheckpointSettings, files: Mapping[str, int], context: WorkerContext, agent: AgentLink
) -> "FitTracker":
    """Track every ``fit`` of this process, and save checkpoints if the settings say so.

    Args:
        settings: Where checkpoints are kept, and how often ``fit`` saves one.
        files: File descriptors of the checkpoints that the driver sent, by name.
        context: This worker's context.
        agent: The connection to the agent.

    Raises:
        CheckpointError: If the folder in the settings cannot be used.
    """

    def report_written(details: Message) -> None:
        # The driver records checkpoints that it keeps itself when they arrive.
        agent.send({"type": "written" if settings.folder is None else "committed", **details})

    def send_file(name: str, file: BinaryIO) -> None:
        agent.send_file({"type": "commit", "name": name}, file)

    checkpointing = None
    store = open_store(settings, files, context.is_chief, send_file)
    if store is not None:
        writer = CheckpointWriter(store, report_written, agent.warn)
        checkpointing = Checkpointing(store, writer, settings.interval, settings.run_id)
        set_checkpoints(ManualCheckpoints(store, writer, context.is_chief, agent.warn))
    tracker = FitTracker(context, agent, checkpointing)
    tracker.install()
    return tracker


class FitTracker:
    """Follows the calls to ``fit`` in this process, one at a time.

    Args:
        context: This worker's context.
        agent: The connection to the agent.
        checkpointing: How to save checkpoints; None to save nothing.
    """

    def __init__(self, context: WorkerContext, agent: AgentLink, checkpointing: Checkpointing | None = None) -> None:
        self._context, self._agent, self._checkpointing = context, agent, checkpointing
        self._can_save_fits = checkpointing is not None
        self._steps = self._fits = 0
        self._current: FitSession | None = None
        self._failed_at: Position | None = None
        self._last_report = 0.0
        self._has_trailing_report = False

    def install(self) -> None:
        """Follow the steps of every Keras package in this process."""
        self._can_save_fits &= hook_step_loops(self)

    @property
    def position(self) -> dict[str, int] | None:
        """The current fit, epoch and step, or those at which training failed; None outside of ``fit``."""
        position = self._failed_at if self._current is None else self._current.position
        return None if position is None else position.to_json()

    def flush(self) -> None:
        """Wait until all checkpoints are written."""
        if self._checkpointing is not None:
            self._checkpointing.writer.flush()

    def finish(self) -> None:
        """Mark the run as finished."""
        if self._checkpointing is not None and self._context.is_chief:
            # At worst, the next run in this folder resumes from the end of this one.
            with contextlib.suppress(Exception):
                self._checkpointing.store.finish()

    def hook(self, call: MethodCall) -> contextlib.AbstractContextManager[None]:
        """Follow a call to ``fit``; a hook for ``hook_methods``."""
        if call.name != "fit" or self._current is not None:  # a fit inside another fit is part of the outer one
            return contextlib.nullcontext()
        return self._follow(call)

    @contextlib.contextmanager
    def _follow(self, call: MethodCall) -> Iterator[None]:
        module = call.package.callbacks
        checkpointing = self._checkpointing if self._can_save_fits else None
        session = FitSession(self._fits, call.arguments, self._context, self._agent, checkpointing)
        self._current = session
        self._fits += 1
        callback_class = type("Callback", (_SessionCallback, module.Callback), {})
        try:
            session.resume()
            with joined(call.arguments, callback_class(session), module.CallbackList):
                yield
        except BaseException:
            self._failed_at = session.position
            raise
        finally:
            self._current = None
        self._agent.send({"type": "step", "steps": self._steps, "at": None})

    # StepListener.

    def claims_epoch(self) -> bool:
        return self._current is not None and self._current.claim_loop("epoch")

    def claims_fit(self) -> bool:
        return self._current is not None and self._current.claim_loop("fit")

    def first_epoch(self, asked_for: int) -> int:
        found = None if self._current is None else self._current.resume_epoch
        return asked_for if found is None else found

    def begin_epoch(self, epoch: int) -> None:
        if self._current is not None:
            self._current.prepare_data(epoch)

    def start(self, skip_epochs: Callable[[int, int], int]) -> tuple[int, int]:
        assert self._current is not None
        return self._current.start(skip_epochs)

    def arrive(self) -> None:
        if self._current is not None:
            self._current.arrive()

    def made_iterator(self) -> None:
        if self._current is not None:
            self._current.data_use.iterators += 1

    def after_step(self, count: int, *, is_last: bool = False) -> None:
        if self._current is not None:
            self._current.after_step(count, is_last=is_last)
        self.alive()

    def alive(self) -> None:
        self._steps += 1
        now = time.monotonic()
        if now - self._last_report >= _REPORT_SECONDS:
            self._last_report = now
            self._report_steps()
        elif not self._has_trailing_report:
            # Without this, the driver would not learn of the last steps if training stalled now.
            self._has_trailing_report = True
            timer = threading.Timer(_REPORT_SECONDS, self._report_trailing_steps)
            timer.daemon = True
            timer.start()

    def _report_trailing_steps(self) -> None:
        self._has_trailing_report = False
        if self._current is not None:
            self._report_steps()

    def _report_steps(self) -> None:
        self._agent.send({"type": "step", "steps": self._steps, "at": self.position})


class _SessionCallback:
    """Forwards events to the session; combined with the ``Callback`` class of the Keras in use."""

    async_safe = True  # it has no hooks for batches
    _supports_tf_logs = True

    def __init__(self, session: FitSession) -> None:
        super().__init__()
        self._session = session

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._session.begin()

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._session.begin_epoch(epoch)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self._session.end_epoch(epoch, logs)

    def on_train_end(self, logs: Logs | None = None) -> None:
        self._session.end()
