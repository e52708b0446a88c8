"""Makes Keras and tf.distribute treat a shard's dataset as this worker's part of the data."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from ..data.passes import FitPasses, ShardState, shard_states_of
from ..data.transformations import inputs_of
from ..errors import DataError
from .fit_hooks import MethodCall, only
from .kept_iterators import keep_iterators, last_iterators
from .private_names import DEVICE_ITERATORS

_log = logging.getLogger(__name__)

# An iterator of an endless dataset never finishes.
_endless_iterators: deque[Any] = deque()
_last_iterators = last_iterators()


def disable_device_autotuning() -> None:
    """Also turn autotuning off in the dataset that tf.distribute appends for a device (see ``dataset_options``).

    This dataset does not inherit the options of the one before it, and its iterator can take just as long to end.
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
    kept = _endless_iterators if _is_endless(dataset) else _last_iterators
    return keep_iterators(strategy.distribute_datasets_from_function(lambda _: dataset, options), kept)


def _is_endless(dataset: Any) -> bool:
    """Return whether a dataset repeats a shard without end, even if TensorFlow does not know its length."""
    length = int(dataset.cardinality())
    if length != tf.data.UNKNOWN_CARDINALITY or hasattr(dataset, "shard_state"):
        return bool(length == tf.data.INFINITE_CARDINALITY)
    return any(map(_is_endless, inputs_of(dataset)))


@only("fit", "evaluate", "predict")
@contextlib.contextmanager
def feed_shards(call: MethodCall) -> Iterator[None]:
    """Give ``fit`` passes in which every rank has the same number of rows at each step, and other methods all rows.

    This hook precedes those that change the epochs of ``fit``, because the numbers of its passes depend on the epochs
    that the program has passed.
    """
    states = shard_states_of(call.arguments.get("x"))
    before = [state.fit for state in states]
    is_fit = call.name == "fit"
    passes = _passes_of_fit(call.arguments, states) if is_fit else [None] * len(states)
    for state, its_passes in zip(states, passes, strict=True):
        state.fit = its_passes
    try:
        yield
    finally:
        for state, its_passes in zip(states, before, strict=True):
            state.fit = its_passes


def _passes_of_fit(arguments: Mapping[str, Any], states: Sequence[ShardState]) -> list[FitPasses]:
    """Return the passes of a ``fit`` over each of its shards.

    Raises:
        DataError: If there are too few rows for a single step.
    """
    for state in states:
        if not state.equal.steps:
            raise DataError(
                f"The DataFrame {state.name!r} has fewer rows than there are workers or, with drop_remainder, fewer "
                f"than a batch of {state.global_batch} rows: not a single training step is possible. Use fewer workers "
                "or a smaller batch_size."
            )
    validation = shard_states_of(arguments.get("validation_data"))
    # Validation uses every row. A dataset for both can have only one plan.
    is_shared = any(state is other for state in states for other in validation)
    epochs = range(int(arguments.get("initial_epoch", 0)), int(arguments.get("epochs", 1)))
    return [
        state.new_fit(
            state.whole if is_shared else state.equal,
            epochs,
            int(arguments["x"].cardinality()),
            arguments.get("steps_per_epoch"),
        )
        for state in states
    ]
