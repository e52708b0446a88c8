"""One call to ``fit``: restores it from its last checkpoint, and saves it as it proceeds."""

import logging
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from ..context import WorkerContext
from ..data.passes import shard_states_of, yields_batches_of
from ..errors import CheckpointError
from ..formatting import position_text
from ..training.epoch_clock import EpochClock, restored_entries
from ..training.keras_api import given_callbacks, keras_of
from ..training.keras_internals import set_initial_epoch
from ..training.progress import global_batch_of
from ..training.stopping import any_wants
from ..training.tf_collectives import collectives_of
from .agent_link import AgentLink
from .callback_state import Logs, restore_callbacks, restore_history
from .fit_saver import Checkpointing, FitSaver
from .model_state import ModelState
from .names import last_sequence, sequence_of
from .random_replay import RandomReplay
from .resume_point import DataUse, Position, ResumePoint
from .store import newest_checkpoint

_log = logging.getLogger(__name__)


class FitSession:
    """One call to ``fit``.

    Args:
        number: Number of the call in this process, from 0.
        arguments: The arguments of the call by name; ``self`` is the model. ``resume`` may change them.
        context: This worker's context.
        agent: The connection to the agent.
        checkpointing: How to save checkpoints; None to neither save nor resume.

    Attributes:
        position: The current position of the fit.
        data_use: How much of its data the fit has consumed.
        resume_epoch: The epoch with which Keras must begin; None if no checkpoint was found.
    """

    def __init__(
        self,
        number: int,
        arguments: dict[str, Any],
        context: WorkerContext,
        agent: AgentLink,
        checkpointing: Checkpointing | None,
    ) -> None:
        self._arguments, self._context, self._agent = arguments, context, agent
        self._model = arguments["self"]
        self._first_epoch = int(arguments.get("initial_epoch", 0))
        self._epochs = int(arguments.get("epochs", 1))
        self._callbacks = given_callbacks(arguments.get("callbacks"))
        self._shard_states = shard_states_of(arguments.get("x"))
        self.position = Position(number, self._first_epoch)
        self.data_use = DataUse()
        self._model_state = ModelState(self._model, context.is_chief, agent.warn)
        strategy = self._model.distribute_strategy
        self._collectives = collectives_of(strategy, context.rank, context.world_size)
        self._clock = EpochClock(global_batch_of(**arguments))
        self._checkpointing = checkpointing
        self._saver: FitSaver | None = None
        if checkpointing is not None and _spans_all_workers(strategy, context):
            self._saver = FitSaver(
                checkpointing, context, self._collectives, self._model_state, self.position, self.data_use
            )
        self._resume_point: ResumePoint | None = None
        self.resume_epoch: int | None = None
        self._random: RandomReplay | None = None
        self._unclaimed_loops: set[str] = set()
        self._has_started = False

    # Restoring.

    def resume(self) -> None:
        """Find the last checkpoint, and change the arguments of ``fit`` so that it resumes there."""
        if self._saver is None:
            return
        point = self._resume_point = self._find_resume_point()
        if point is None:
            return
        self._arguments["x"] = self._model_state.build(self._arguments.get("x"))
        facts = point.facts
        self.data_use.epoch_steps = facts.epoch_steps
        self.position.epoch, self.position.step = facts.epoch, facts.step
        self.resume_epoch = self._epochs if facts.complete else facts.epoch
        if keras_of(self._model) == "keras":  # tf_keras asks for the epoch later
            self._arguments["initial_epoch"] = self.resume_epoch
        for callback in self._callbacks:
            if hasattr(callback, "append") and hasattr(callback, "append_header"):
                callback.append = True  # otherwise, a CSVLogger would overwrite its file
        if self._context.is_chief:
            position = self.position.to_json()
            if facts.complete:
                call = f"fit() {self.position.fit + 1}"
                print(f"{call} is already complete; restoring checkpoint {point.name}.", flush=True)
            else:
                where = position_text(position, of_call=True)
                print(f"Resuming {where} from checkpoint {point.name}.", flush=True)
            self._agent.send({"type": "resumed", **position, "complete": facts.complete})
            entries = restored_entries(facts.fit, point.state.epochs, point.state.history)
            self._agent.send({"type": "epochs", "restored": True, "entries": entries})

    def _find_resume_point(self) -> ResumePoint | None:
        """Return the last checkpoint, which rank 0 reads and broadcasts."""
        found = None
        if self._context.is_chief and self._checkpointing is not None and self._saver is not None:
            store, lane = self._checkpointing.store, f"fit{self.position.fit}"
            found = newest_checkpoint(store, lane, ResumePoint.decode, self._agent.warn)
            # New checkpoints take the numbers of those that were skipped. If all were skipped, the new ones get higher
            # numbers, because lower ones would be deleted as older.
            last = last_sequence(store.names(), lane) if found is None else sequence_of(found.name)
            self._saver.sequence = last + 1
        data = self._collectives.broadcast_bytes(None if found is None else found.data)
        if data is None:
            return None
        return found.content if found else ResumePoint.decode(data)

    def begin(self) -> None:
        """Restore the model, its callbacks and the random generators when training begins."""
        self._unclaimed_loops = {"fit"}
        if self._saver is None:
            return
        self._saver.begin(self._callbacks)
        if self._resume_point is None:
            return
        facts, state = self._resume_point.facts, self._resume_point.state
        try:
            self._model_state.restore_weights(state.weights, facts.variables, state.target_of("optimizer"))
            self._model_state.restore_layers(state.layers_of(self._context.rank, self._context.world_size))
            self._model_state.restore_optimizers(state.optimizers, state.optimizer_targets)
            held = state.held_of(self._context.rank, self._context.world_size)
            is_same_size = facts.world_size == self._context.world_size
            self._model_state.restore_held(held, self._callbacks, is_same_size=is_same_size)
        except CheckpointError as error:
            raise CheckpointError(
                f"The checkpoint {self._resume_point.name} cannot be restored. {error} Choose another checkpoint_dir, "
                "or remove its files, to train from the beginning."
            ) from None
        state.weights, state.layers, state.held = [], [], []  # frees the memory
        set_initial_epoch(self._model, self.resume_epoch)  # BackupAndRestore may have chosen an earlier one
        restore_callbacks(self._callbacks, state.callbacks)
        is_same_size = len(state.random) == self._context.world_size
        self._random = RandomReplay(state.random[self._context.rank] if is_same_size else None)

    def begin_epoch(self, epoch: int) -> None:
        """Restore metrics and history when Keras begins an epoch, after it has reset them."""
        self.prepare_data(epoch)
        self._clock.begin()
        self._unclaimed_loops.add("epoch")
        is_resumed = self._resume_point is not None and epoch == self.position.epoch and self.position.step > 0
        self.position.epoch = epoch
        if not is_resumed:
            self.position.step = 0
        elif self._resume_point is not None:
            self._model_state.restore_metrics(self._resume_point.state.metrics)
        self._restore_history()

    def _restore_history(self) -> None:
        """Restore the history late and repeatedly: Keras clears it after every other callback has begun."""
        if self._resume_point is not None:
            state = self._resume_point.state
            restore_history(self._model, state.history, state.epochs)

    # Skipping the data that was consumed before the checkpoint.

    def claim_loop(self, kind: str) -> bool:
        """Return whether the loop that begins, over an ``"epoch"`` or a whole ``"fit"``, belongs to this session."""
        is_expected = kind in self._unclaimed_loops
        self._unclaimed_loops.discard(kind)
        return is_expected

    def prepare_data(self, epoch: int) -> None:
        """Announce the epoch that the next iterator is for, which determines the order of a shard's rows."""
        for state in self._shard_states:
            if state.fit is not None:
                state.fit.begin_epoch(epoch)

    def start(self, skip_epochs: Callable[[int, int], int]) -> tuple[int, int]:
        """Position the data at the step to resume from; see ``StepListener.start``."""
        if self._has_started:  # a later epoch
            return 0, 0
        self._has_started = True
        self._unclaimed_loops.discard("fit")
        epochs = steps = 0
        if self._resume_point is not None:
            epochs, steps = self.position.epoch - self._first_epoch, self.position.step
        if self._shard_states:
            steps_per_epoch = self._arguments.get("steps_per_epoch")
            if not steps_per_epoch:
                return steps, steps  # the order of a shard's rows depends only on the epoch's number
            remaining = self._skip_passes(epochs * int(steps_per_epoch) + steps)
            if remaining is not None:
                return steps, remaining
        if self._random is not None:
            self._random.begin_skipping()
        return steps, skip_epochs(epochs, self.data_use.epoch_steps) + steps

    def _skip_passes(self, batches: int) -> int | None:
        """Make a shard that repeats without end begin with a later pass, without reading the passes before it.

        Args:
            batches: The number of batches to skip.

        Returns:
            How many batches remain to be skipped; None if the data must be read from its beginning.
        """
        for state in self._shard_states:
            if state.fit is not None:
                state.fit.begun = 0  # Keras may have read a batch to build the model
        data: Any = self._arguments["x"]
        fit = self._shard_states[0].fit
        is_endless = int(data.cardinality()) == tf.data.INFINITE_CARDINALITY
        if fit is None or not is_endless or not yields_batches_of(data, self._shard_states[0], mapped=True):
            return None
        fit.begun, remaining = divmod(batches, fit.plan.steps)
        return remaining

    def arrive(self) -> None:
        """Note that skipping is complete: the data is at the same position as at the checkpoint."""
        if self._random is not None:
            self._random.end_skipping(mid_epoch=self.position.step > 0)
        self._clock.skipped()

    # Saving.

    def after_step(self, count: int, *, is_last: bool) -> None:
        """Count completed steps, and save a checkpoint if one is due."""
        self.position.step += count
        self._clock.after_step(count)
        self._model_state.finish_metrics()
        if self._saver is not None:
            self._saver.after_step(count, is_last=is_last)

    def end_epoch(self, epoch: int, logs: Logs | None) -> None:
        """Report an epoch, stop if the driver asks for it, and save a checkpoint.

        Keras calls this after all other callbacks except the history.
        """
        if self._context.is_chief:  # reported before it is saved, or a later attempt could skip an unreported epoch
            self._agent.end_epoch(self._clock.entry(self.position.fit, epoch, logs))
        self.data_use.epoch_steps = self.position.step
        is_last = epoch + 1 >= self._epochs
        if not is_last and any_wants(self._agent.should_stop(self.position.fit), self._collectives):
            self._model.stop_training = True
        if self._saver is not None and not (is_last or self._model.stop_training):  # the end of training is saved next
            self._saver.end_epoch(epoch, logs or {})

    def end(self) -> None:
        """Save a last checkpoint when training ends."""
        self._restore_history()
        if self._resume_point is not None and self._resume_point.facts.complete:
            self._consume_orders(self._resume_point.facts.iterators)
        elif self._saver is not None:
            self._saver.end(self._epochs)

    def _consume_orders(self, iterators: int) -> None:
        """Create as many iterators as the complete fit did.

        A shuffled dataset draws a new order for each iterator, and a later fit with this dataset must get the same
        orders.
        """
        data: Any = self._arguments.get("x")
        if hasattr(data, "element_spec") and not self._shard_states:
            for _ in range(iterators):
                iter(data)


def _spans_all_workers(strategy: "tf.distribute.Strategy", context: WorkerContext) -> bool:
    if context.world_size == 1 or strategy.num_replicas_in_sync >= context.world_size:
        return True
    _log.warning(
        "This fit() does not use a strategy that spans all %d workers: it is neither saved nor resumed.",
        context.world_size,
    )
    return False
