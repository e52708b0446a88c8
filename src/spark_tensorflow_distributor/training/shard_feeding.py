"""Makes Keras and tf.distribute treat a shard's dataset as this worker's part of the data."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from ..data.passes import ShardState, shard_states_of
from ..errors import DataError
from .fit_hooks import MethodCall, only
from .private_names import DEVICE_ITERATORS

_log = logging.getLogger(__name__)


def disable_device_autotuning() -> None:
    """Turn autotuning off in the dataset that tf.distribute appends for a device, too (see ``dataset_options``).

    This dataset does not inherit the options of the one before it, and its iterator can take as long to end.
    """
    module = DEVICE_ITERATORS.load()
    original = getattr(module, "_create_device_dataset", None)
    if original is None:
        _log.debug("This release of TensorFlow creates its datasets for devices in another way.")
        return

    untuned = tf.data.Options()
    untuned.autotune.enabled = False

    @functools.wraps(original)
    def create_device_dataset(*args: Any, **kwargs: Any) -> tf.data.Dataset:
        return original(*args, **kwargs).with_options(untuned)

    module._create_device_dataset = create_device_dataset  # type: ignore[attr-defined]


def distribute_shard(strategy: tf.distribute.Strategy, dataset: tf.data.Dataset, options: Any) -> Any:
    """Distribute a dataset that derives from a shard, which holds this worker's rows alone, for a custom loop."""
    distributed = strategy.distribute_datasets_from_function(lambda _: dataset, options)
    return _with_kept_iterators(distributed) if int(dataset.cardinality()) < 0 else distributed


def _with_kept_iterators(distributed: Any) -> Any:
    """Keep the iterators of a dataset that may be endless alive until the process ends.

    TensorFlow's device iterator occasionally crashes if it is destroyed while its thread is fetching the next batch,
    which is always the case for an endless dataset.
    """

    class Kept(type(distributed)):  # type: ignore[misc]
        def __iter__(self) -> Iterator[Any]:
            _iterators.append(super().__iter__())
            return _iterators[-1]

    distributed.__class__ = Kept
    return distributed


_iterators: list[Iterator[Any]] = []


@only("fit")
@contextlib.contextmanager
def feed_shards(call: MethodCall) -> Iterator[None]:
    """Let every rank have the same number of rows in each step of ``fit``."""
    arguments = call.arguments
    states = shard_states_of(arguments.get("x"))
    if not states:
        yield
        return
    validation = shard_states_of(arguments.get("validation_data"))
    training = [state for state in states if not any(state is other for other in validation)]
    for state in states:
        _check_steps(state)
    for state in training:
        state.is_training = True
    try:
        yield
    finally:
        for state in training:
            state.is_training = False


def _check_steps(state: ShardState) -> None:
    """Reject a shard with too few rows for a single step of training."""
    if not state.equal.steps:
        raise DataError(
            f"The DataFrame {state.name!r} has fewer rows than there are workers or, with drop_remainder, fewer than a "
            f"batch of {state.global_batch} rows: not a single training step is possible. Use fewer workers or a "
            "smaller batch_size."
        )
