"""Keras and tf.distribute are told that a shard's dataset is this worker's own part already.

Under a strategy of several workers ``fit`` takes every dataset for the whole one, and cuts each of its batches by the
number of workers: half of a shard's rows would be lost on two workers, without a word.
"""

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

from ..data.passes import ShardState, shard_states_of
from ..errors import DataError
from .keras_api import by_name, defining_class, keras_packages

_log = logging.getLogger(__name__)


def feed_shards() -> None:
    """Apply it to this process: to ``Strategy.experimental_distribute_dataset``, and to ``fit``."""
    import tensorflow as tf

    _untune_device_datasets()
    owner = defining_class(tf.distribute.MultiWorkerMirroredStrategy, "experimental_distribute_dataset")
    owner.experimental_distribute_dataset = _distributing(owner.experimental_distribute_dataset)
    for package in keras_packages():
        model = defining_class(package.Model, "fit")
        model.fit = _fitting(model.fit)


def _untune_device_datasets() -> None:
    """Turn the tuning off (see ``dataset_options``) in the dataset, too, that tf.distribute puts behind for devices.

    It is a new one, without the options of the one before it, and its iterator can be as late to end.
    """
    import tensorflow as tf
    from tensorflow.python.data.ops import multi_device_iterator_ops

    original = getattr(multi_device_iterator_ops, "_create_device_dataset", None)
    if original is None:
        _log.debug("This TensorFlow makes its datasets for devices in another way.")
        return

    untuned = tf.data.Options()
    untuned.autotune.enabled = False

    @functools.wraps(original)
    def create_device_dataset(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **kwargs).with_options(untuned)

    multi_device_iterator_ops._create_device_dataset = create_device_dataset


def _distributing(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def experimental_distribute_dataset(self: Any, dataset: Any, options: Any = None) -> Any:
        feeds = shard_states_of(dataset)
        if not feeds:
            return original(self, dataset, options)
        replicas = len(self.extended.worker_devices)
        if replicas > 1:
            dataset = dataset.rebatch(-(-feeds[0].whole.batch // replicas))
        distributed = self.distribute_datasets_from_function(lambda _: dataset, options)
        return _kept(distributed) if int(dataset.cardinality()) < 0 else distributed

    return experimental_distribute_dataset


def _kept(distributed: Any) -> Any:
    """Keep the iterators of a dataset that may have no end until the process ends.

    TensorFlow's iterator for devices crashes, now and then, if it is destroyed while its thread fetches the next batch,
    as that of an endless dataset always does.
    """

    class Kept(type(distributed)):  # type: ignore[misc]
        def __iter__(self) -> Any:
            _iterators.append(super().__iter__())
            return _iterators[-1]

    distributed.__class__ = Kept
    return distributed


_iterators: list[Any] = []


def _fitting(original: Callable[..., Any]) -> Callable[..., Any]:
    def fit(call: inspect.BoundArguments) -> Any:
        arguments = call.arguments
        data = arguments.get("x")
        feeds = shard_states_of(data)
        if not feeds:
            return original(*call.args, **call.kwargs)
        others = shard_states_of(arguments.get("validation_data"))
        training = [feed for feed in feeds if not any(feed is other for other in others)]
        if training and len(training) == len(feeds):
            arguments["x"] = _equal_steps(data, feeds[0])
        arguments.setdefault("shuffle", False)  # it is the shard's affair; Keras would warn that it ignores it
        for feed in training:
            feed.is_training = True
        try:
            return original(*call.args, **call.kwargs)
        finally:
            for feed in training:
                feed.is_training = False

    return by_name(original, fit)


def _equal_steps(data: Any, feed: ShardState) -> Any:
    """The dataset without the last step, where that has rows for some of the ranks only."""
    if int(data.cardinality()) != feed.whole.steps:
        return data  # a dataset of the user's own making, or one without an end
    if not feed.equal.steps:
        raise DataError(
            f"The DataFrame {feed.name!r} has fewer rows than there are workers, or, with drop_remainder, than a batch "
            f"of {feed.global_batch} rows: there is no step to train. Use fewer workers, or a smaller batch_size."
        )
    return data.take(feed.equal.steps) if feed.equal.steps < feed.whole.steps else data
