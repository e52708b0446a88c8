"""Saves checkpoints of one ``fit``."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from ..context import WorkerContext
from ..training.collectives import Collectives
from ..training.random_state import random_state
from . import snapshot
from .callback_state import Callback, Logs, Start, callback_states, callbacks_at_start, history_of
from .interval import CheckpointInterval
from .model_state import ModelState
from .names import checkpoint_name
from .resume_point import CheckpointFacts, DataUse, FitState, HeldValues, Position, held_by_rank
from .save_clock import SaveClock
from .store import CheckpointStore
from .variable_specs import describe
from .writer import CheckpointWriter


@dataclass(frozen=True)
class Checkpointing:
    """How this process saves checkpoints.

    Attributes:
        store: Keeps the checkpoints.
        writer: Writes checkpoints to the store.
        interval: How often ``fit`` saves one.
        run_id: Identifies the run.
    """

    store: CheckpointStore
    writer: CheckpointWriter
    interval: CheckpointInterval
    run_id: str


class FitSaver:
    """Decides when to save a checkpoint of a ``fit``, and captures it on all ranks.

    Args:
        checkpointing: How to save.
        context: This worker's context.
        collectives: The group's collectives.
        model_state: The model in training.
        position: The current position of the fit; changes as it proceeds.
        data_use: How much of its data the fit has consumed; changes as it proceeds.

    Attributes:
        sequence: Number of the next checkpoint.
    """

    def __init__(
        self,
        checkpointing: Checkpointing,
        context: WorkerContext,
        collectives: Collectives,
        model_state: ModelState,
        position: Position,
        data_use: DataUse,
    ) -> None:
        self._checkpointing, self._context, self._collectives = checkpointing, context, collectives
        self._model_state, self._position, self._data_use = model_state, position, data_use
        self._clock = SaveClock(checkpointing.interval)
        self._callbacks: Sequence[Callback] = ()
        self._callbacks_at_start: list[dict[str, Start]] = []
        self.sequence = 0

    def begin(self, callbacks: Sequence[Callback]) -> None:
        """Include these callbacks in checkpoints; call this when training begins, before a checkpoint is restored."""
        self._callbacks = callbacks
        if self._context.is_chief:  # the only one that saves their state
            self._callbacks_at_start = callbacks_at_start(callbacks)

    def after_step(self, count: int, *, is_last: bool) -> None:
        """Save a checkpoint between two steps if one is due.

        Nothing is saved after an epoch's last step: the end of the epoch is saved next, and a resume from before it
        would lose the epoch's logs.
        """
        self._clock.advance(count)
        if not is_last and self._clock.is_sync_due:
            self._synchronise()

    def _synchronise(self) -> None:
        plan = b""
        if self._context.is_chief:
            plan = json.dumps(self._clock.plan(self._checkpointing.writer.seconds)).encode()
        is_due, steps = json.loads(self._collectives.broadcast_bytes(plan) or b"[false, 1]")
        if is_due:
            self._save(self._position.epoch, self._position.step)
        self._clock.schedule(steps)

    def end_epoch(self, epoch: int, logs: Logs) -> None:
        """Save a checkpoint at the end of an epoch."""
        self._save(epoch + 1, 0, ended=(epoch, logs))
        self._clock.epoch_saved()

    def end(self, epochs: int) -> None:
        """Save a checkpoint of the complete ``fit``."""
        self._save(epochs, 0, complete=True)

    def _save(self, epoch: int, step: int, *, complete: bool = False, ended: tuple[int, Logs] | None = None) -> None:
        """Capture a checkpoint from which training resumes at this epoch and step, and queue it for writing."""
        started = time.monotonic()
        # At the end of an epoch, too: a callback may have changed state since it was averaged.
        with self._model_state.averaged_layers() as layers:
            part = BytesIO()
            held, gathered = self._model_state.capture_held(self._callbacks)
            snapshot.write(part, {}, [random_state(), self._model_state.local_part(), layers, gathered])
            parts = self._collectives.gather_bytes(part.getvalue())
            if self._context.is_chief:
                self._put(parts, held, epoch, step, complete, ended)
        self.sequence += 1
        self._clock.saved(time.monotonic() - started)

    def _put(
        self,
        parts: Sequence[bytes],
        own: HeldValues,
        epoch: int,
        step: int,
        complete: bool,
        ended: tuple[int, Logs] | None,
    ) -> None:
        """Queue a checkpoint, of which each rank has sent a part."""
        random, local_parts, layers, held = zip(*(snapshot.read(each)[1] for each in parts), strict=True)
        weights, metrics = self._model_state.capture(local_parts)
        history, epochs = history_of(self._model_state.model, ended)
        callbacks = callback_states(self._callbacks, self._callbacks_at_start)
        optimizers, targets = self._model_state.capture_optimizers()
        state = FitState(
            weights,
            metrics,
            list(random),
            callbacks,
            history,
            epochs,
            optimizers,
            list(layers),
            optimizer_targets=targets,
            held=held_by_rank([own, *held[1:]]),
        )
        facts = CheckpointFacts(
            run=self._checkpointing.run_id,
            fit=self._position.fit,
            epoch=epoch,
            step=step,
            epoch_steps=self._data_use.epoch_steps,
            iterators=self._data_use.iterators,
            sequence=self.sequence,
            complete=complete,
            world_size=self._context.world_size,
            variables=describe(self._model_state.weights),
        )
        name = checkpoint_name(f"fit{self._position.fit}", self.sequence)
        self._checkpointing.writer.put(name, facts.to_json(), vars(state))
