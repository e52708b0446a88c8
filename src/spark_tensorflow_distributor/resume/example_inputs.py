"""A batch with the shapes and types of a model's data, from which Keras builds the model."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf


def example_inputs(data: Any) -> tuple[Any, Any]:
    """Return a batch of one row with the shapes and types of the data, and data that still has all batches."""

    def zeros(spec: tf.TensorSpec) -> tf.Tensor:
        return tf.zeros([1 if size is None else size for size in spec.shape], spec.dtype)

    if hasattr(data, "element_spec"):
        spec = data.element_spec
        return tf.nest.map_structure(zeros, spec[0] if isinstance(spec, tuple) else spec), data
    inputs = data
    if hasattr(data, "__next__"):
        batch = next(data)
        inputs, data = _inputs_of(batch), _with_first(batch, data)
    elif hasattr(data, "__getitem__") and hasattr(data, "on_epoch_end"):  # Keras' PyDataset and Sequence
        inputs = _inputs_of(data[0])
    return tf.nest.map_structure(lambda array: tf.convert_to_tensor(np.asarray(array)[:1]), inputs), data


def _inputs_of(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple | list) else batch


def _with_first(first: Any, others: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from others
