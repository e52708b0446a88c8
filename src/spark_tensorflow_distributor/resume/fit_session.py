"""One call of ``fit``: where it is, what is saved of it, and where it goes on."""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.passes import ShardState, shard_states_of
from ..errors import CheckpointError
from ..training.collectives import Collectives
from ..training.keras_api import given_callbacks, is_keras_3
from ..training.random_state import random_state, restore_random_state
from . import snapshot, store
from .callback_state import callback_states, restore_callbacks
from .model_state import ModelState, describe
from .names import checkpoint_name

if TYPE_CHECKING:
    from .fit_tracker import FitTracker

_log = logging.getLogger("spark_tensorflow_distributor")


class FitSession:
    """One call of ``fit``."""

    def __init__(self, keeper: "FitTracker", number: int, arguments: dict[str, Any]) -> None:
        self._keeper, self._number, self._arguments = keeper, number, arguments
        self._lane = f"fit{number}"
        self._model = arguments["self"]
        self._strategy = self._model.distribute_strategy
        self._first_epoch = int(arguments.get("initial_epoch", 0))
        self.goes_on_with: int | None = None  # the epoch that a checkpoint says
        self._epochs = int(arguments.get("epochs", 1))
        self._callbacks = given_callbacks(arguments.get("callbacks"))
        self._state = ModelState(self._model, self._strategy, keeper.context.is_chief)
        self._resumed: tuple[dict[str, Any], Any] | None = None
        self._claimable: set[str] = set()
        self._epoch, self._step = self._first_epoch, 0
        self._is_positioned = False
        # Of the random generators: where they were when training began, and where they are to go on.
        self._random_begun: dict[str, Any] | None = None
        self._random_ahead: dict[str, Any] | None = None
        self.iterators = 0
        self._begun: list[dict[str, Any]] = []
        self._waiting_metrics: Sequence[np.ndarray] | None = None
        self._sequence = self._epoch_steps = 0
        self._can_save = keeper.store is not None and self._can_exchange()
        self._exchange = Collectives(self._strategy, keeper.context.rank, keeper.context.world_size)
        self._steps_done, self._meet_at = 0, keeper.pace.first if keeper.pace else 0
        self._met = self._committed = (time.monotonic(), 0)
        self._cost = 0.0

    def place(self) -> dict[str, int]:
        return {"fit": self._number, "epoch": self._epoch, "step": self._step}

    def _can_exchange(self) -> bool:
        world_size = self._keeper.context.world_size
        if world_size == 1 or self._strategy.num_replicas_in_sync >= world_size:
            return True
        _log.warning("fit is not under a strategy of all %d workers: it is not saved, and not resumed.", world_size)
        return False

    # Taking up.

    def resume(self) -> None:
        """Find the last checkpoint, and set the arguments of ``fit`` so that it goes on there."""
        if not self._can_save:
            return
        keeper = self._keeper
        assert keeper.store is not None
        found = store.newest(keeper.store, self._lane, keeper.warn) if keeper.context.is_chief else None
        data = self._exchange.broadcast(found and found[1])
        if data is None:
            return
        facts, state = found[2:] if found else snapshot.read(BytesIO(data))
        self._resumed = facts, state
        self._sequence, self._epoch_steps = int(facts["sequence"]) + 1, int(facts["epoch_steps"])
        self._epoch, self._step = int(facts["epoch"]), int(facts["step"])
        is_over = facts["complete"]
        self.goes_on_with = self._epochs if is_over else self._epoch
        if is_keras_3(self._model):  # tf_keras asks for it later
            self._arguments["initial_epoch"] = self.goes_on_with
        for callback in self._callbacks:
            if hasattr(callback, "append") and hasattr(callback, "append_header"):
                callback.append = True  # a CSVLogger would begin its file anew
        if keeper.context.is_chief:
            where = "is complete" if is_over else f"goes on in epoch {self._epoch + 1}, after {self._step} steps"
            print(f"fit {self._number + 1} {where}: checkpoint {facts['name']}.", flush=True)
            keeper.tell({"type": "resumed", **self.place(), "complete": bool(is_over)})

    def restore(self) -> None:
        """Set the model to what was saved. Its variables exist by now."""
        self._claimable = {"fit"}
        if not self._can_save:
            return
        self._begun = callback_states(self._callbacks)
        self._build()
        if self._resumed is None:
            return
        facts, state = self._resumed
        try:
            self._state.restore_weights(state["weights"], facts["variables"])
        except CheckpointError as error:
            raise CheckpointError(
                f"The checkpoint {facts['name']} cannot be taken up. {error} Choose another checkpoint_dir, or remove "
                "its files, to train from the beginning."
            ) from None
        del state["weights"]
        if hasattr(self._model, "_initial_epoch"):  # a BackupAndRestore may have set it to an earlier one
            self._model._initial_epoch = self.goes_on_with
        restore_callbacks(self._callbacks, state["callbacks"])
        self._random_begun = random_state()
        self._restore_random()

    def _restore_random(self) -> None:
        context = self._keeper.context
        if self._resumed is not None and len(states := self._resumed[1]["random"]) == context.world_size:
            restore_random_state(states[context.rank])

    def _build(self) -> None:
        if not self._model.built:
            _build_from(self._arguments.get("x"), self._model, self._strategy)
        self._state.build()

    def claims(self, what: str) -> bool:
        if what not in self._claimable:
            return False
        self._claimable.discard(what)
        return True

    def begin_epoch(self, epoch: int) -> None:
        """The next iterator is that of this epoch: its order of rows goes by the epoch's number."""
        if not self._arguments.get("steps_per_epoch"):
            for feed in self._feeds():
                feed.epoch = epoch

    def _feeds(self) -> list[ShardState]:
        return shard_states_of(self._arguments.get("x"))

    def enter_epoch(self, epoch: int) -> None:
        """Keras begins an epoch, and has reset the metrics."""
        self.begin_epoch(epoch)
        self._claimable.add("epoch")
        is_resumed = self._resumed is not None and epoch == self._epoch and self._step > 0
        self._epoch = epoch
        if not is_resumed:
            self._step = 0
        elif self._resumed is not None:
            metrics = self._resumed[1]["metrics"]
            self._waiting_metrics = None if self._state.restore_metrics(metrics) else metrics
        self.restore_history()

    def restore_history(self) -> None:
        """Keras begins the history anew after every other callback has begun."""
        if self._resumed is None:
            return
        _, state = self._resumed
        history = self._model.history
        history.epoch[:0] = [each for each in state["epochs"] if each not in history.epoch]
        for name, values in state["history"].items():
            if len(history.history.get(name, ())) < len(values):
                history.history[name] = list(values)

    def start(self, skip_epochs: Callable[[int, int], int]) -> tuple[int, int]:
        if self._is_positioned:  # a later epoch
            return 0, 0
        self._is_positioned = True
        self._claimable.discard("fit")
        epochs, steps = (self._epoch - self._first_epoch, self._step) if self._resumed is not None else (0, 0)
        feeds, steps_per_epoch = self._feeds(), self._arguments.get("steps_per_epoch")
        if not feeds:
            if self._random_begun is not None:
                # A PyDataset draws its order from Python's generator, or NumPy's, now as it did then.
                self._random_ahead = random_state()
                restore_random_state(self._random_begun)
            return steps, skip_epochs(epochs, self._epoch_steps) + steps
        if not steps_per_epoch:
            return steps, steps  # the order of an epoch of a shard goes by its number
        taken = epochs * int(steps_per_epoch) + steps
        for feed in feeds:
            feed.next_pass = feed.first_pass + taken // feed.whole.steps
        return steps, taken % feeds[0].whole.steps

    def arrive(self) -> None:
        if self._random_ahead is not None:
            restore_random_state(self._random_ahead)
            if self._step:  # what callbacks have drawn as the epoch began is in it already
                self._restore_random()
            self._random_ahead = None

    # Saving.

    def after_step(self, count: int, *, is_last: bool) -> None:
        """Between two steps: save if it is time.

        Not after an epoch's last step: its end is saved soon, and an epoch without a step would have no logs.
        """
        self._step += count
        self._steps_done += count
        if self._waiting_metrics is not None:
            self._state.restore_metrics(self._waiting_metrics, after_a_step=True)
            self._waiting_metrics = None
        if self._can_save and not is_last and self._steps_done >= self._meet_at:
            self._meet()

    def _meet(self) -> None:
        """All ranks are here, at the same step."""
        pace, now = self._keeper.pace, time.monotonic()
        assert pace is not None
        plan = b""
        if self._keeper.context.is_chief:
            since = now - self._committed[0]
            is_due = pace.is_due(since)
            each = (now - self._met[0]) / max(1, self._steps_done - self._met[1])
            cost = self._cost + (self._keeper.writer.seconds if self._keeper.writer else 0.0)
            plan = json.dumps([is_due, pace.steps_until_next(each, 0.0 if is_due else since, cost)]).encode()
        is_due, steps = json.loads(self._exchange.broadcast(plan) or b"[false, 1]")
        if is_due:
            self._state.put_together()  # at the end of an epoch, it is
            self._commit(self._epoch, self._step)
        self._met = time.monotonic(), self._steps_done
        self._meet_at = self._steps_done + steps

    def end_epoch(self, epoch: int, logs: dict[str, Any] | None) -> None:
        """Keras has ended an epoch; all other callbacks but the history have been called."""
        self._epoch_steps = self._step
        is_last = epoch + 1 >= self._epochs or self._model.stop_training
        if self._can_save and not is_last:  # the end of the training is saved in a moment
            self._commit(epoch + 1, 0, extra=(epoch, logs or {}))
            if self._keeper.pace is not None and self._keeper.pace.steps:
                self._meet_at = self._steps_done + self._keeper.pace.steps

    def end(self) -> None:
        """Keras has ended the training."""
        self.restore_history()
        if self._resumed is not None and self._resumed[0]["complete"]:
            self._use_up_orders(int(self._resumed[0]["iterators"]))
        elif self._can_save:
            self._commit(self._epochs, 0, complete=True)
        for feed in self._feeds():
            feed.epoch = None

    def _use_up_orders(self, iterators: int) -> None:
        """A shuffled dataset draws an order for each iterator: a later fit with it has to get its own."""
        data: Any = self._arguments.get("x")
        if hasattr(data, "element_spec") and not self._feeds():
            for _ in range(iterators):
                iter(data)

    def _commit(
        self, epoch: int, step: int, *, complete: bool = False, extra: tuple[int, dict[str, Any]] | None = None
    ) -> None:
        """Take a copy of everything, and have it written."""
        started = time.monotonic()
        part = BytesIO()
        snapshot.write(part, {}, [random_state(), self._state.own_part()])
        parts = self._exchange.gather(part.getvalue())
        if self._keeper.context.is_chief:
            read = [snapshot.read(BytesIO(each))[1] for each in parts]
            state = self._state.capture([own for _, own in read])
            history, epochs = _history(self._model, extra)
            state.update(
                random=[each for each, _ in read],
                callbacks=callback_states(self._callbacks, self._begun),
                history=history,
                epochs=epochs,
            )
            facts = {
                "run": self._keeper.run,
                "fit": self._number,
                "epoch": epoch,
                "step": step,
                "epoch_steps": self._epoch_steps,
                "iterators": self.iterators,
                "sequence": self._sequence,
                "complete": complete,
                "world_size": self._keeper.context.world_size,
                "variables": describe(self._state.weights),
            }
            assert self._keeper.writer is not None
            self._keeper.writer.put(checkpoint_name(self._lane, self._sequence), facts, state)
        self._sequence += 1
        now = time.monotonic()
        self._committed, self._cost = (now, self._steps_done), now - started


def _history(model: Any, extra: tuple[int, dict[str, Any]] | None) -> tuple[dict[str, list[Any]], list[int]]:
    """The history so far, with the epoch that has just ended and is not in it yet."""
    recorded = getattr(model, "history", None)
    history = {name: list(values) for name, values in getattr(recorded, "history", {}).items()}
    epochs = [int(each) for each in getattr(recorded, "epoch", ())]
    if extra is not None and extra[0] not in epochs:
        epochs.append(extra[0])
        for name, value in extra[1].items():
            history.setdefault(name, []).append(value)
    return {name: [_plain(each) for each in values] for name, values in history.items()}, epochs


def _plain(value: Any) -> Any:
    with contextlib.suppress(TypeError, ValueError):
        return float(value)
    return np.asarray(value).tolist()


def _build_from(data: Any, model: Any, strategy: Any) -> None:
    """Create the variables of a model that Keras would build in its first step (tf_keras)."""
    import tensorflow as tf

    def one(spec: Any) -> Any:
        return tf.zeros([1 if size is None else size for size in spec.shape], spec.dtype)

    if hasattr(data, "element_spec"):
        spec = data.element_spec
        inputs = tf.nest.map_structure(one, spec[0] if isinstance(spec, tuple) else spec)
    else:
        inputs = tf.nest.map_structure(lambda array: tf.convert_to_tensor(np.asarray(array)[:1]), data)
    with strategy.scope():
        model(inputs, training=False)
