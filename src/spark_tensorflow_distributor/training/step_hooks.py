"""The loops of Keras over epochs and steps, with a place to stand between two steps.

Between two steps a training can be saved, and skip what an earlier attempt has done; and each step is a sign of life. A
callback would not do: Keras 3 may call it from another thread and late, and the data is out of its reach.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from .keras_api import defining_class, keras_packages

_log = logging.getLogger(__name__)


class StepListener(Protocol):
    """Who stands between the steps."""

    def claims_epoch(self) -> bool:
        """Whether the loop that begins now is the present epoch of ``fit``, and no evaluation."""

    def claims_fit(self) -> bool:
        """The same of a loop over all epochs (tf_keras)."""

    def first_epoch(self, asked_for: int) -> int:
        """The epoch to begin with, where the loop is told only now (tf_keras)."""

    def begin_epoch(self, epoch: int) -> None:
        """An iterator for this epoch is made next."""

    def start(self, skip_epochs: Callable[[int, int], int]) -> tuple[int, int]:
        """Where the first epoch begins.

        Args:
            skip_epochs: leaves so many epochs of so many steps out, so that the next one comes in its own order;
                returns the batches that have to be left out for that.

        Returns:
            How many steps of the epoch were taken before, and how many batches to leave out.
        """

    def arrive(self) -> None:
        """All that was to be left out is; the same again is nothing new.

        What data draws from random generators in epochs that are left out is drawn between ``start`` and this.
        """

    def made_iterator(self) -> None:
        """Keras has made an iterator of the training's data."""

    def after_step(self, count: int, *, is_last: bool = False) -> None:
        """So many steps of training are done.

        Args:
            count: how many.
            is_last: no other one follows in this epoch. False where the length of an epoch is not known yet.
        """

    def alive(self) -> None:
        """A step of any other kind is done."""


def hook_step_loops(listener: StepListener) -> bool:
    """Place the guest in the loops of every Keras of this process; False where one has loops of an unknown kind."""
    done = True
    for package in keras_packages():
        try:
            if hasattr(package.src, "engine"):
                _in_tf_keras(package.src.engine.data_adapter.DataHandler, listener)
            else:
                _in_keras(package.src.backend.tensorflow.trainer.TFEpochIterator, listener)
        except Exception as error:  # internals that nobody promised to keep
            _log.warning("%s %s has loops of an unknown kind (%r)", package.__name__, package.__version__, error)
            done = False
    return done


def _in_keras(loop: Any, listener: StepListener) -> None:
    # Keras 3.5 and 3.6 have a loop of their own for TensorFlow.
    is_of_its_own = "enumerate_epoch" in vars(loop)
    name = "enumerate_epoch" if is_of_its_own else "_enumerate_iterator"
    owner = defining_class(loop, name)
    original = getattr(owner, name)

    def epoch(self: Any) -> Any:
        if not is_of_its_own:
            _count_iterators(self, listener)
        elif not (self.steps_per_epoch and self._current_iterator):
            listener.made_iterator()  # this loop asks for none by a method
        return original(self)

    @functools.wraps(original)
    def enumerate_steps(self: Any) -> Iterator[Any]:
        if not listener.claims_epoch():
            for each in original(self):
                yield each
                listener.alive()
            return
        done, batches = listener.start(lambda count, steps: _skip_epochs(self, epoch, count, steps))
        if not batches:
            listener.arrive()
        left = _left(epoch(self), done, batches, listener)
        yield from _telling(left, listener, lambda: self.steps_per_execution)

    setattr(owner, name, enumerate_steps)


def _left(steps: Iterator[Any], done: int, batches: int, listener: StepListener) -> Iterator[Any]:
    """The steps that are not done, after so many batches have been left out."""
    for *numbers, iterator in steps:
        batches = _pull(iterator, batches)
        listener.arrive()
        if numbers[0] >= done:
            yield (*numbers, iterator)


def _telling(steps: Iterator[Any], listener: StepListener, size: Callable[[], int]) -> Iterator[Any]:
    """The steps, of each of which the guest is told when it is known whether another one follows.

    Args:
        steps: of an epoch of training.
        guest: who is told.
        size: of the step that has just been made; the next one may be shorter.
    """
    count = 0
    for each in steps:
        if count:
            listener.after_step(count)
        yield each
        count = size()
    if count:
        listener.after_step(count, is_last=True)


def _count_iterators(loop: Any, listener: StepListener) -> None:
    if "_get_iterator" in vars(loop):  # they are, already
        return
    get_iterator = loop._get_iterator

    def counted() -> Any:
        listener.made_iterator()
        return get_iterator()

    loop._get_iterator = counted


def _skip_epochs(loop: Any, original: Callable[[Any], Iterator[Any]], count: int, steps: int) -> int:
    adapter = loop.data_adapter
    kind = type(adapter).__name__
    if not count:
        return 0
    if loop.steps_per_epoch or kind == "GeneratorDataAdapter":
        for _ in range(count):  # one stream over all epochs: there is no other way past it than through it
            for *_, iterator in original(loop):
                _pull(iterator, loop.steps_per_execution)
        return 0
    # A shuffle draws a new order for each iterator. So as many are made as Keras made, but of the dataset itself, whose
    # iterators do not begin to fetch by themselves.
    distributed = loop._distributed_dataset
    if kind != "PyDatasetAdapter":  # which gives a new one each time; and in Keras 3.5, each has a shuffle of its own
        loop._distributed_dataset = adapter.get_tf_dataset()
    try:
        for _ in range(count):
            epoch = original(loop)
            *_, iterator = next(epoch)
            if kind in ("ArrayDataAdapter", "PyDatasetAdapter"):
                next(iterator)  # its order is drawn with the first batch
            if loop._num_batches is not None:
                for _ in epoch:
                    pass
    finally:
        loop._distributed_dataset, loop._current_iterator = distributed, None
    if loop._num_batches is None:
        # A dataset of unknown length: Keras has counted the step at which it was out of data.
        loop._num_batches = steps + loop.steps_per_execution
    return 0


def _in_tf_keras(handler: Any, listener: StepListener) -> None:
    epochs, steps = handler.enumerate_epochs, handler.steps

    @functools.wraps(epochs)
    def enumerate_epochs(self: Any) -> Iterator[Any]:
        if not listener.claims_fit():
            yield from epochs(self)
            return
        # Not sooner: arrays would be repeated for as many epochs as there are from here.
        self._initial_epoch = listener.first_epoch(self._initial_epoch)
        left_out = 0

        def leave_out(count: int, _: int) -> int:
            nonlocal left_out
            left_out = count
            return _skip_tf_epochs(self, count, listener)

        self._initial_step, batches = listener.start(leave_out)
        if not batches:  # the end of an epoch is saved before the data is told of it
            listener.arrive()
        if left_out:
            self._adapter.on_epoch_end()
        listener.begin_epoch(self._initial_epoch)
        listener.made_iterator()
        for epoch, iterator in epochs(self):
            if self._adapter.should_recreate_iterator():
                listener.made_iterator()
            batches = _pull(iterator, batches)
            listener.arrive()
            yield epoch, iterator
            listener.begin_epoch(epoch + 1)

    @functools.wraps(steps)
    def enumerate_steps(self: Any) -> Iterator[Any]:
        if not listener.claims_epoch():
            for each in steps(self):
                yield each
                listener.alive()
            return
        yield from _telling(steps(self), listener, lambda: int(self.step_increment) + 1)

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
            next(iterator)  # its order is drawn with the first batch
    return 0


def _pull(iterator: Any, count: int) -> int:
    for _ in range(count):
        next(iterator)
    return 0
