"""Patches for random numbers that the workers share."""

from __future__ import annotations

import functools
import inspect
import itertools
import random
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import tensorflow as tf

from ..keras_api import by_name
from ..private_names import DATA_SEEDS, EAGER_CONTEXT, KERAS_LEGACY_LAYERS, KERAS_RANDOM, KERAS_TRAINER
from .batch_parts import BatchPart, current_part, is_same_for_all_rows, rows_in_part

_PHILOX = 1
# Numbers of 32 bits or fewer that Philox4x32 draws for one value of its counter.
_GROUP = 4

_seeds = itertools.count(1)


def shuffle_alike(seed: int) -> None:
    """Give all workers the same random order if the program sets no seed.

    They take their parts of the same batches. If each shuffled by itself, some rows would be in several parts and
    others in none. So Python, NumPy and ``tf.data`` begin with the same seed on all workers, in all attempts of a run.
    """
    global _seeds
    _seeds = itertools.count(seed % (1 << 30))
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % (1 << 32))
    module: Any = DATA_SEEDS.load()
    original = module.get_seed

    @functools.wraps(original)
    def get_seed(seed: int | None) -> Any:
        if seed is None and _has_no_seed():
            seed = next(_seeds)
        return original(seed)

    module.get_seed = get_seed


def shuffled_arrays(keras: ModuleType) -> bool:
    """Do the same for arrays, which Keras shuffles in a graph that only knows TensorFlow's global seed."""
    loop = KERAS_TRAINER.load().TFEpochIterator
    loop.__init__ = with_a_seed(loop.__init__)
    return True


def with_a_seed(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap a function that makes datasets, so that their operations have the same seeds on all workers."""

    def init(call: inspect.BoundArguments) -> None:
        is_set = not _has_no_seed()
        if not is_set:
            tf.random.set_seed(next(_seeds))
        try:
            original(*call.args, **call.kwargs)
        finally:
            if not is_set:
                tf.random.set_seed(None)

    return by_name(original, init)


def _has_no_seed() -> bool:
    return EAGER_CONTEXT.load().global_seed() is None


def dropout(keras: ModuleType) -> bool:
    """Give each row of a global batch its own mask.

    All workers have the same seed, so Keras drops the same units in the first row of each part, in the second and so
    on. Here the masks of a part are those that its rows would have in one process: the generator is counter-based, and
    starts at the part's position (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
    """
    module: Any = KERAS_RANDOM.load()
    original = module.dropout

    @functools.wraps(original)
    def dropout(inputs: tf.Tensor, rate: float, noise_shape: Any = None, seed: Any = None) -> tf.Tensor:
        part, replica = current_part(), tf.distribute.get_replica_context()
        if part is None or replica is None or is_same_for_all_rows(noise_shape) or not 0 < rate < 1:
            return original(inputs, rate, noise_shape, seed)
        seed = module._cast_seed(module.draw_seed(seed))
        shape = tf.shape(inputs, out_type=tf.int64)
        if noise_shape is not None:
            shape = [shape[i] if each is None else tf.cast(each, tf.int64) for i, each in enumerate(noise_shape)]
            shape = tf.stack(shape)
        drawn = _uniform_of_part(shape, part, seed, inputs.dtype)
        return tf.where(drawn >= rate, inputs * tf.cast(1 / (1 - rate), inputs.dtype), tf.zeros((), inputs.dtype))

    module.dropout = dropout
    return True


def _uniform_of_part(shape: tf.Tensor, part: BatchPart, seed: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Return the part's numbers among those that the global batch would draw."""
    count = tf.reduce_prod(shape)
    skipped = part.begin * (count // tf.maximum(rows_in_part(part), 1))
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    low = counter[0] + tf.cast(skipped // _GROUP, tf.uint64)
    counter = tf.stack([low, counter[1] + tf.cast(low < counter[0], tf.uint64)])
    lead = skipped % _GROUP
    drawn = tf.raw_ops.StatelessRandomUniformV2(
        shape=tf.reshape(count + lead, [1]), key=key, counter=counter, alg=_PHILOX, dtype=dtype
    )
    return tf.reshape(drawn[lead:], shape)


# Whether a layer that adds or multiplies noise is drawing.
_state = threading.local()


def noise(keras: ModuleType) -> bool:
    """Give each row of a global batch its own noise in GaussianNoise, GaussianDropout and AlphaDropout.

    All workers have the same seeds, so Keras draws the same noise for the first row of each part, for the second and so
    on. Here each worker draws what one process would draw for the global batch, and takes the rows of its part.
    """
    module = KERAS_RANDOM.load()
    for name in ("normal", "uniform"):
        setattr(module, name, drawing_for_all(getattr(module, name)))
    mark_noise(keras.layers)
    legacy = KERAS_LEGACY_LAYERS.load().AlphaDropout  # the one of tf.keras
    legacy.call = _marking(legacy.call)
    return True


def mark_noise(layers: ModuleType) -> None:
    """Make it known when one of the layers draws."""
    for layer in (layers.GaussianNoise, layers.GaussianDropout, layers.AlphaDropout):
        layer.call = _marking(layer.call)


def _marking(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(self: Any, inputs: tf.Tensor, training: Any = None) -> Any:
        _state.is_noise = True
        try:
            return original(self, inputs, training=training)
        finally:
            _state.is_noise = False

    return call


def drawing_for_all(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function of a ``shape`` that draws random numbers: draw for the global batch, return the part's rows."""

    def draw(call: inspect.BoundArguments) -> Any:
        part, shape = current_part(), call.arguments["shape"]
        is_noise = getattr(_state, "is_noise", False) and tf.distribute.get_replica_context() is not None
        if part is None or not is_noise or is_same_for_all_rows(shape):
            return original(*call.args, **call.kwargs)
        static = shape if isinstance(shape, tuple | list) else [None] * shape.shape[0]
        shape = tf.cast(tf.stack(shape), tf.int64)
        per_row = shape[0] // tf.maximum(rows_in_part(part), 1)  # a TimeDistributed layer has several for a row
        call.arguments["shape"] = tf.concat([[per_row * part.global_rows], shape[1:]], axis=0)
        numbers = original(*call.args, **call.kwargs)
        begin = per_row * part.begin
        return tf.ensure_shape(
            numbers[begin : begin + shape[0]], [size if isinstance(size, int) else None for size in static]
        )

    return by_name(original, draw)
