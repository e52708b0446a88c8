"""Hooks into Keras' loops over epochs and steps, which call a listener between steps.

Between two steps, training can be saved, and can skip what an earlier attempt has done; each step is also a sign of
life. A callback does not suffice: Keras 3 may call it late and on another thread, and it has no access to the data.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from .keras_api import defining_class, keras_packages
from .private_names import KERAS_TRAINER, TF_KERAS_DATA

_log = logging.getLogger(__name__)

# What Keras 3 yields per execution of steps: the number of its first step (and its last, since 3.12), and the iterator.
Step = tuple[Any, ...]


class StepListener(Protocol):
    """Receives calls between the steps of training."""

    def claims_epoch(self) -> bool:
        """Return whether the loop that begins now is the current epoch of ``fit`` and not an evaluation."""

    def claims_fit(self) -> bool:
        """Return the same for a loop over all epochs (tf_keras)."""

    def first_epoch(self, asked_for: int) -> int:
        """Return the epoch to begin with, given the one that the program asked for (tf_keras)."""

    def begin_epoch(self, epoch: int) -> None:
        """Note that the next iterator is for this epoch."""

    def start(self, skip_epochs: Callable[[int, int], int]) -> tuple[int, int]:
        """Return where the first epoch begins.

        Args:
            skip_epochs: Skips a number of epochs with a number of steps each, so that the next epoch has the order of
                rows that it would have had; returns how many batches remain to be skipped.

        Returns:
            The steps of the epoch that are already done, and the batches to skip.
        """

    def arrive(self) -> None:
        """Note that skipping is complete; further calls have no effect.

        Random numbers that the data consumes in skipped epochs are drawn between ``start`` and this call.
        """

    def made_iterator(self) -> None:
        """Note that Keras has created an iterator over the training data."""

    def after_step(self, count: int, *, is_last: bool = False) -> None:
        """Note that training steps are done.

        Args:
            count: How many.
            is_last: Whether no other step follows in this epoch. False if the length of the epoch is not known yet.
        """

    def alive(self) -> None:
        """Note that a step of another kind, such as evaluation, is done."""


def hook_step_loops(listener: StepListener) -> bool:
    """Hook the loops of every Keras package of this process; return False if one has unrecognised loops."""
    is_hooked = True
    for package in keras_packages():
        try:
            if package.__name__ == "tf_keras":
                _hook_tf_keras(TF_KERAS_DATA.load().DataHandler, listener)
            else:
                _hook_keras(KERAS_TRAINER.load().TFEpochIterator, listener)
        except Exception as error:  # these internals may change
            _log.warning("%s %s has unrecognised training loops (%r)", package.__name__, package.__version__, error)
            is_hooked = False
    return is_hooked


def _hook_keras(loop_class: type, listener: StepListener) -> None:
    owner = defining_class(loop_class, "_enumerate_iterator")
    original = owner._enumerate_iterator

    def counted_epoch(self: Any) -> Iterator[Step]:
        _count_iterators(self, listener)
        return original(self)  # type: ignore[no-any-return]

    @functools.wraps(original)
    def enumerate_steps(self: Any) -> Iterator[Step]:
        if not listener.claims_epoch():
            for step in original(self):
                yield step
                listener.alive()
            return
        steps_done, batches = listener.start(lambda count, steps: _skip_epochs(self, counted_epoch, count, steps))
        if not batches:
            listener.arrive()
        remaining = _remaining_steps(counted_epoch(self), steps_done, batches, listener)
        yield from _report_steps(remaining, listener, lambda: self.steps_per_execution)

    owner._enumerate_iterator = enumerate_steps


def _remaining_steps(steps: Iterator[Step], steps_done: int, batches: int, listener: StepListener) -> Iterator[Step]:
    """Yield the steps that are not done yet, after skipping a number of batches."""
    for *numbers, iterator in steps:
        batches = _skip_batches(iterator, batches)
        listener.arrive()
        if numbers[0] >= steps_done:
            yield (*numbers, iterator)


def _report_steps(steps: Iterator[Any], listener: StepListener, size: Callable[[], int]) -> Iterator[Any]:
    """Yield the steps of an epoch, and report each one once it is known whether another follows.

    Args:
        steps: The steps of an epoch of training.
        listener: Receives the reports.
        size: Returns the number of steps in the last execution; the next one may be shorter.
    """
    count = 0
    for step in steps:
        if count:
            listener.after_step(count)
        yield step
        count = size()
    if count:
        listener.after_step(count, is_last=True)


def _count_iterators(loop: Any, listener: StepListener) -> None:
    if "_get_iterator" in vars(loop):  # already counted
        return
    get_iterator = loop._get_iterator

    def counted() -> Any:
        listener.made_iterator()
        return get_iterator()

    loop._get_iterator = counted


def _skip_epochs(loop: Any, epoch_of: Callable[[Any], Iterator[Step]], count: int, steps: int) -> int:
    adapter = loop.data_adapter
    kind = type(adapter).__name__
    if not count:
        return 0
    if loop.steps_per_epoch or kind == "GeneratorDataAdapter":
        for _ in range(count):  # a single stream over all epochs can only be read sequentially
            for *_, iterator in epoch_of(loop):
                _skip_batches(iterator, loop.steps_per_execution)
        return 0
    # A shuffle draws a new order for each iterator. So create as many iterators as Keras created, but over the plain
    # dataset, whose iterators do not prefetch.
    distributed = loop._distributed_dataset
    if kind != "PyDatasetAdapter":  # its get_tf_dataset returns a new dataset each time
        loop._distributed_dataset = adapter.get_tf_dataset()
    try:
        for _ in range(count):
            epoch = epoch_of(loop)
            *_, iterator = next(epoch)
            if kind in ("ArrayDataAdapter", "PyDatasetAdapter"):
                next(iterator)  # the order is drawn with the first batch
            if loop._num_batches is not None:
                for _ in epoch:
                    pass
    finally:
        loop._distributed_dataset, loop._current_iterator = distributed, None
    if loop._num_batches is None:
        # For a dataset of unknown length, Keras counts the step that found no more data.
        loop._num_batches = steps + loop.steps_per_execution
    return 0


def _hook_tf_keras(handler: Any, listener: StepListener) -> None:
    epochs, steps = handler.enumerate_epochs, handler.steps

    @functools.wraps(epochs)
    def enumerate_epochs(self: Any) -> Iterator[tuple[int, Any]]:
        if not listener.claims_fit():
            yield from epochs(self)
            return
        # Not set before the handler was created: arrays would then be repeated only for the epochs from there on.
        self._initial_epoch = listener.first_epoch(self._initial_epoch)
        skipped = 0

        def skip_epochs(count: int, _: int) -> int:
            nonlocal skipped
            skipped = count
            return _skip_tf_epochs(self, count, listener)

        self._initial_step, batches = listener.start(skip_epochs)
        if not batches:  # a checkpoint at the end of an epoch precedes the data's on_epoch_end
            listener.arrive()
        if skipped:
            self._adapter.on_epoch_end()
        listener.begin_epoch(self._initial_epoch)
        listener.made_iterator()
        for epoch, iterator in epochs(self):
            if self._adapter.should_recreate_iterator():
                listener.made_iterator()
            batches = _skip_batches(iterator, batches)
            listener.arrive()
            yield epoch, iterator
            listener.begin_epoch(epoch + 1)

    @functools.wraps(steps)
    def enumerate_steps(self: Any) -> Iterator[int]:
        if not listener.claims_epoch():
            for step in steps(self):
                yield step
                listener.alive()
            return
        yield from _report_steps(steps(self), listener, lambda: int(self.step_increment) + 1)

    handler.enumerate_epochs, handler.steps = enumerate_epochs, enumerate_steps


def _skip_tf_epochs(handler: Any, count: int, listener: StepListener) -> int:
    if not handler._adapter.should_recreate_iterator():
        return count * int(handler.inferred_steps or 0)
    adapter = handler._adapter
    for number in range(count):
        if number:
            adapter.on_epoch_end()
        listener.made_iterator()
        iterator = iter(adapter.get_dataset())
        if type(adapter).__name__ == "KerasSequenceAdapter":
            next(iterator)  # the order is drawn with the first batch
    return 0


def _skip_batches(iterator: Iterator[Any], count: int) -> int:
    for _ in range(count):
        next(iterator)
    return 0
