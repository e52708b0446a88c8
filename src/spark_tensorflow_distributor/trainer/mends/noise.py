"""Layers that add or multiply noise."""

import functools
import importlib
import inspect
import threading
from collections.abc import Callable
from typing import Any

from ..keras import by_name
from .parts import is_of_no_row, present_part, rows_of_part

# Whether such a layer is what draws.
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
