"""Keras and tf.distribute are told that a shard's dataset is this worker's own part already.

Under a strategy of several workers ``fit`` takes every dataset for the whole one, and cuts each of its batches by the
number of workers: half of a shard's rows would be lost on two workers, without a word.
"""

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

from ..errors import DataError
from .batches import Feed, feeds_of
from .keras import defining_class, keras_packages

_log = logging.getLogger(__name__)


def feed_shards() -> None:
    """Apply it to this process: to ``Strategy.experimental_distribute_dataset``, and to ``fit`` and ``evaluate``."""
    import tensorflow as tf

    owner = defining_class(tf.distribute.MultiWorkerMirroredStrategy, "experimental_distribute_dataset")
    owner.experimental_distribute_dataset = _distributing(owner.experimental_distribute_dataset)
    for package in keras_packages():
        for name, wrap in (("fit", _fitting), ("evaluate", _evaluating)):
            model = defining_class(package.Model, name)
            setattr(model, name, wrap(getattr(model, name)))


def _distributing(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def experimental_distribute_dataset(self: Any, dataset: Any, options: Any = None) -> Any:
        feeds = feeds_of(dataset)
        if not feeds:
            return original(self, dataset, options)
        replicas = len(self.extended.worker_devices)
        if replicas > 1:
            dataset = dataset.rebatch(-(-feeds[0].whole.batch // replicas))
        return self.distribute_datasets_from_function(lambda _: dataset, options)

    return experimental_distribute_dataset


def _fitting(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def fit(*args: Any, **kwargs: Any) -> Any:
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return original(*args, **kwargs)  # Keras has the words for it
        data, validation = arguments.get("x"), arguments.get("validation_data")
        feeds = feeds_of(data)
        if not feeds:
            return original(*args, **kwargs)
        others = feeds_of(validation)
        training = [feed for feed in feeds if not any(feed is other for other in others)]
        if training and len(training) == len(feeds):
            arguments["x"], arguments["steps_per_epoch"] = _in_steps(
                data, feeds[0], feeds[0].equal.steps, arguments.get("steps_per_epoch")
            )
        if others:
            arguments["validation_data"], arguments["validation_steps"] = _in_steps(
                validation, others[0], others[0].whole.steps, arguments.get("validation_steps")
            )
        for feed in training:
            feed.is_training = True
        try:
            receiver = arguments.pop("self")
            return original(receiver, **arguments)
        finally:
            for feed in training:
                feed.is_training = False

    return fit


def _evaluating(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def evaluate(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return original(*args, **kwargs)
        data = bound.arguments.get("x")
        feeds = feeds_of(data)
        if not feeds:
            return original(*args, **kwargs)
        given = bound.arguments.get("steps")
        bound.arguments["x"], bound.arguments["steps"] = _in_steps(data, feeds[0], feeds[0].whole.steps, given)
        return original(*bound.args, **bound.kwargs)

    return evaluate


def _in_steps(data: Any, feed: Feed, steps: int, given: int | None) -> tuple[Any, int | None]:
    """The dataset without an end, and the steps of a pass.

    With a dataset that ends, TensorFlow asks all workers before every step whether one of them has rows left: a
    collective a step. Here the number is known, and the same for all.
    """
    if int(data.cardinality()) != feed.whole.steps:
        return data, given  # a dataset of the user's own making, or one without an end
    if not steps:
        raise DataError(
            f"The DataFrame {feed.name!r} has fewer rows than there are workers, or, with drop_remainder, than a batch "
            f"of {feed.global_batch} rows: there is no step to train. Use fewer workers, or a smaller batch_size."
        )
    return data.take(steps).repeat(), given or steps
