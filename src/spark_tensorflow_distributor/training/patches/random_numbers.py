"""Patches for random numbers: the same order of rows on all workers, and different numbers for different rows."""

from __future__ import annotations

import functools
import inspect
import random
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import tensorflow as tf

from ..keras_api import by_name, defining_class
from ..private_names import DATA_SEEDS, EAGER_CONTEXT, KERAS_LEGACY_LAYERS, KERAS_RANDOM, KERAS_TRAINER
from ..replica_step import ReplicaStep, current_step

_PHILOX = 1
# The bits that Philox4x32 draws per value of its counter: four numbers of at most 32 bits, or two of 64.
_BITS = 128

_seed = 0


def seeds_so_far() -> int:
    """Return the position in the sequence of seeds that this module gives out, for :func:`restore_seeds`."""
    return _seed


def restore_seeds(seed: int) -> None:
    """Rewind the sequence of seeds to a result of :func:`seeds_so_far`."""
    global _seed
    _seed = seed


def _next_seed() -> int:
    global _seed
    _seed += 1
    return _seed


def shuffle_alike(seed: int) -> None:
    """Make all workers shuffle in the same order if the program sets no seed.

    Workers take their parts from the same batches. If they shuffled differently, some rows would be in several parts
    and others in none. Therefore Python, NumPy and ``tf.data`` start from the same seed on all workers and in all
    attempts of a run.

    Args:
        seed: The run's seed, the same on all workers.
    """
    restore_seeds(seed % (1 << 30))
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % (1 << 32))
    module: Any = DATA_SEEDS.load()
    original = module.get_seed

    @functools.wraps(original)
    def get_seed(seed: int | None) -> Any:
        if seed is None and _has_no_seed():
            seed = _next_seed()
        return original(seed)

    module.get_seed = get_seed


def shuffled_arrays(keras: ModuleType) -> None:
    """Make all workers shuffle arrays in the same order.

    Keras shuffles arrays in a graph, where only TensorFlow's global seed applies.
    """
    loop = KERAS_TRAINER.load().TFEpochIterator
    loop.__init__ = with_a_seed(loop.__init__)


def with_a_seed(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap a function that creates datasets, so that their operations get the same seeds on all workers."""

    def init(call: inspect.BoundArguments) -> None:
        is_set = not _has_no_seed()
        if not is_set:
            tf.random.set_seed(_next_seed())
        try:
            original(*call.args, **call.kwargs)
        finally:
            if not is_set:
                tf.random.set_seed(None)

    return by_name(original, init)


def _has_no_seed() -> bool:
    return EAGER_CONTEXT.load().global_seed() is None


def dropout(keras: ModuleType) -> None:
    """Give each row of a global batch its own mask.

    All workers have the same seed, so Keras would drop the same units in the first row of every part, in the second,
    and so on. Instead, each row gets the mask that it would have in one process: the generator is counter-based, and
    starts at the part's position (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
    """
    module: Any = KERAS_RANDOM.load()
    original = module.dropout

    @functools.wraps(original)
    def dropout(inputs: tf.Tensor, rate: float, noise_shape: Any = None, seed: Any = None) -> tf.Tensor:
        step = current_step()
        is_same = is_same_for_all_rows(noise_shape) and not is_drawn_by_row()
        if step is None or is_same or not 0 < rate < 1 or not step.counts_rows(inputs.shape[0], inputs):
            return original(inputs, rate, noise_shape, seed)
        inputs = tf.convert_to_tensor(inputs)
        seed = module._cast_seed(module.draw_seed(seed))
        shape = tf.shape(inputs, out_type=tf.int64)
        if noise_shape is not None:
            shape = [shape[i] if each is None else tf.cast(each, tf.int64) for i, each in enumerate(noise_shape)]
            shape = tf.stack(shape)
        drawn = _uniform_of_part(shape, step, seed, inputs.dtype)
        return tf.where(drawn >= rate, inputs * tf.cast(1 / (1 - rate), inputs.dtype), tf.zeros((), inputs.dtype))

    module.dropout = dropout
    spatial = defining_class(keras.layers.SpatialDropout1D, "call")
    spatial.call = marking(spatial.call)


def is_drawn_by_row() -> bool:
    """Return whether this thread is in the call of a layer that draws separate numbers for each row."""
    return getattr(_state, "is_by_row", False)


def is_same_for_all_rows(shape: Any) -> bool:
    """Return whether random numbers of this shape (a sequence, a tensor or None) are shared by all rows."""
    return isinstance(shape, tuple | list) and isinstance(shape[0], int) and shape[0] == 1


def _uniform_of_part(shape: tf.Tensor, step: ReplicaStep, seed: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Return the numbers, uniform in [0, 1), that the part's rows would get if the global batch were drawn at once."""
    count = tf.reduce_prod(shape)
    begin, _ = step.positions()
    skipped = begin * (count // tf.maximum(step.rows, 1))
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    group = _BITS // max(32, 8 * dtype.size)
    low = counter[0] + tf.cast(skipped // group, tf.uint64)
    counter = tf.stack([low, counter[1] + tf.cast(low < counter[0], tf.uint64)])
    lead = skipped % group
    drawn = tf.raw_ops.StatelessRandomUniformV2(
        shape=tf.reshape(count + lead, [1]), key=key, counter=counter, alg=_PHILOX, dtype=dtype
    )
    return tf.reshape(drawn[lead:], shape)


# Attribute is_by_row: whether this thread is in the call of a layer that draws separate numbers for each row. Attribute
# inputs: what the layer was called with.
_state = threading.local()


def noise(keras: ModuleType) -> None:
    """Give each row of a global batch its own noise in GaussianNoise, GaussianDropout and AlphaDropout.

    All workers have the same seeds, so Keras would draw the same noise for the first row of each part, for the second,
    and so on. Instead, each worker draws the noise of the global batch, as one process would, and takes the rows of its
    part.
    """
    module = KERAS_RANDOM.load()
    for name in ("normal", "uniform"):
        setattr(module, name, drawing_for_all(getattr(module, name)))
    mark_noise(keras.layers)
    legacy = KERAS_LEGACY_LAYERS.load().AlphaDropout  # the one in tf.keras
    legacy.call = marking(legacy.call)


def mark_noise(layers: ModuleType) -> None:
    """Wrap the noise layers' ``call``, so that their draws can be distinguished from others."""
    for layer in (layers.GaussianNoise, layers.GaussianDropout, layers.AlphaDropout):
        layer.call = marking(layer.call)


def marking(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a layer's ``call``, for :func:`is_drawn_by_row`."""

    @functools.wraps(original)
    def call(self: Any, inputs: tf.Tensor, training: Any = None) -> Any:
        # The drawn shape does not show this, because it also begins with 1 for a part of one row.
        _state.is_by_row = not is_same_for_all_rows(getattr(self, "noise_shape", None))
        _state.inputs = inputs
        try:
            return original(self, inputs, training=training)
        finally:
            _state.is_by_row, _state.inputs = False, None

    return call


def drawing_for_all(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function that draws numbers of a given ``shape``: draw for the global batch, return the part's rows."""

    def draw(call: inspect.BoundArguments) -> Any:
        step, shape = current_step(), call.arguments["shape"]
        if step is None or not is_drawn_by_row():
            return original(*call.args, **call.kwargs)
        static = shape if isinstance(shape, tuple | list) else [None] * shape.shape[0]
        if not step.counts_rows(static[0], _state.inputs):
            return original(*call.args, **call.kwargs)
        shape = tf.cast(tf.stack(shape), tf.int64)
        per_row = shape[0] // tf.maximum(step.rows, 1)  # a TimeDistributed layer has several entries per row
        begin, global_rows = step.positions()
        call.arguments["shape"] = tf.concat([[per_row * global_rows], shape[1:]], axis=0)
        numbers = original(*call.args, **call.kwargs)
        begin = per_row * begin
        return tf.ensure_shape(
            numbers[begin : begin + shape[0]], [size if isinstance(size, int) else None for size in static]
        )

    return by_name(original, draw)
