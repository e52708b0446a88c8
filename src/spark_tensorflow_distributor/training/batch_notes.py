"""Records when a step has received its batch, for steps that fetch it within a graph."""

from typing import Any

import numpy as np
import tensorflow as tf

from .step_times import step_times


def note_batch(batch: Any) -> None:
    """Record, eagerly or in a graph, that a batch has arrived; do nothing if steps are not measured in graphs."""
    if not step_times.fetches_in_graph:
        return
    if tf.executing_eagerly():
        step_times.has_batch()
        return
    tensors = [leaf for leaf in tf.nest.flatten(batch, expand_composites=True) if isinstance(leaf, tf.Tensor)]
    # Control dependencies, not arguments, so that the tensors need not leave their device.
    with tf.device("/device:CPU:0"), tf.control_dependencies(tensors[:1]):
        tf.numpy_function(_has_batch, [], tf.int64)


def _has_batch() -> np.int64:
    step_times.has_batch()
    return np.int64(0)
