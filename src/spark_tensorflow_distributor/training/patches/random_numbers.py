"""Random numbers that the workers share."""

import functools
import importlib
import inspect
import itertools
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

from ..keras_api import by_name
from .batch_parts import is_of_no_row, present_part, rows_of_part

_PHILOX = 1
# Numbers that Philox4x32 draws for one value of its counter, of 32 bits or fewer each.
_GROUP = 4

_seeds = itertools.count(1)


def shuffle_alike(tf: Any, seed: int) -> None:
    """Gives all workers the same random order where the program gives no seed.

    They take their parts of the same batches. Where each had shuffled for itself, some rows would be in several parts
    and others in none. So Python, NumPy and ``tf.data`` begin with one seed on all workers, in all attempts of a run.
    """
    global _seeds
    from tensorflow.python.data.util import random_seed

    _seeds = itertools.count(seed % (1 << 30))
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % (1 << 32))
    original = random_seed.get_seed

    @functools.wraps(original)
    def get_seed(seed: Any) -> Any:
        if seed is None and _has_no_seed():
            seed = next(_seeds)
        return original(seed)

    random_seed.get_seed = get_seed


def shuffled_arrays(tf: Any, keras: Any) -> bool:
    """The same for arrays, which Keras shuffles by an operation in a graph, that knows but TensorFlow's global seed."""
    loop = keras.src.backend.tensorflow.trainer.TFEpochIterator
    loop.__init__ = with_a_seed(tf, loop.__init__)
    return True


def with_a_seed(tf: Any, original: Callable[..., None]) -> Callable[..., None]:
    """What makes datasets, in such a way that all workers' operations in them have the same seeds."""

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
    from tensorflow.python.eager import context

    return context.global_seed() is None


def dropout(tf: Any, keras: Any) -> bool:
    """Gives each row of a batch a mask of its own.

    All workers have the same seed, so that Keras drops the same units in the first row of each part, the second and so
    on. Here a part's masks are those that its rows would have had in one process: the generator counts, and is begun
    where the part does (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
    """
    module = keras.src.backend.tensorflow.random
    original = module.dropout

    @functools.wraps(original)
    def dropout(inputs: Any, rate: float, noise_shape: Any = None, seed: Any = None) -> Any:
        part, replica = present_part(), tf.distribute.get_replica_context()
        if part is None or replica is None or is_of_no_row(noise_shape) or not 0 < rate < 1:
            return original(inputs, rate, noise_shape, seed)
        seed = module._cast_seed(module.draw_seed(seed))
        shape = tf.shape(inputs, out_type=tf.int64)
        if noise_shape is not None:
            shape = [shape[i] if each is None else tf.cast(each, tf.int64) for i, each in enumerate(noise_shape)]
            shape = tf.stack(shape)
        drawn = _uniform_of_part(tf, shape, part, seed, inputs.dtype)
        return tf.where(drawn >= rate, inputs * tf.cast(1 / (1 - rate), inputs.dtype), tf.zeros((), inputs.dtype))

    module.dropout = dropout
    return True


def _uniform_of_part(tf: Any, shape: Any, part: Any, seed: Any, dtype: Any) -> Any:
    """The part's numbers of those that the whole batch would draw."""
    count = tf.reduce_prod(shape)
    skipped = part.begin * (count // tf.maximum(rows_of_part(part), 1))
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    low = counter[0] + tf.cast(skipped // _GROUP, tf.uint64)
    counter = tf.stack([low, counter[1] + tf.cast(low < counter[0], tf.uint64)])
    lead = skipped % _GROUP
    drawn = tf.raw_ops.StatelessRandomUniformV2(
        shape=tf.reshape(count + lead, [1]), key=key, counter=counter, alg=_PHILOX, dtype=dtype
    )
    return tf.reshape(drawn[lead:], shape)


# Whether a layer that adds or multiplies noise is what draws.
_state = threading.local()


def noise(tf: Any, keras: Any) -> bool:
    """Gives each row of a batch noise of its own in GaussianNoise, GaussianDropout and AlphaDropout.

    All workers have the same seeds, so that Keras draws the same noise for the first row of each part, the second and
    so on. Here each worker draws what one process would, for the whole batch, and takes that of its part.
    """
    module = keras.src.backend.tensorflow.random
    for name in ("normal", "uniform"):
        setattr(module, name, drawing_for_all(tf, getattr(module, name)))
    tell_noise(keras.layers)
    legacy = importlib.import_module("keras.src.legacy.layers").AlphaDropout  # that of tf.keras
    legacy.call = _telling(legacy.call)
    return True


def tell_noise(layers: Any) -> None:
    """Lets it be known when one of the layers draws."""
    for layer in (layers.GaussianNoise, layers.GaussianDropout, layers.AlphaDropout):
        layer.call = _telling(layer.call)


def _telling(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(self: Any, inputs: Any, training: Any = None) -> Any:
        _state.is_noise = True
        try:
            return original(self, inputs, training=training)
        finally:
            _state.is_noise = False

    return call


def drawing_for_all(tf: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a ``shape`` that draws random numbers: of a part, those among the numbers of the whole batch."""

    def draw(call: inspect.BoundArguments) -> Any:
        part, shape = present_part(), call.arguments["shape"]
        is_noise = getattr(_state, "is_noise", False) and tf.distribute.get_replica_context() is not None
        if part is None or not is_noise or is_of_no_row(shape):
            return original(*call.args, **call.kwargs)
        known = shape if isinstance(shape, tuple | list) else [None] * shape.shape[0]
        shape = tf.cast(tf.stack(shape), tf.int64)
        each = shape[0] // tf.maximum(rows_of_part(part), 1)  # a TimeDistributed layer has several for a row
        call.arguments["shape"] = tf.concat([[each * part.rows], shape[1:]], axis=0)
        numbers = original(*call.args, **call.kwargs)
        begin = each * part.begin
        return tf.ensure_shape(
            numbers[begin : begin + shape[0]], [each if isinstance(each, int) else None for each in known]
        )

    return by_name(original, draw)
