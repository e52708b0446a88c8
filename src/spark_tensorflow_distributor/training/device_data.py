"""Moves the batches of a dataset to a worker's device."""

from __future__ import annotations

import tensorflow as tf


def to_device(dataset: tf.data.Dataset, device: str) -> tf.data.Dataset:
    """Prefetch batches to a GPU during the previous step, unless they contain strings, which GPUs do not support."""
    kinds = [getattr(leaf, "dtype", None) for leaf in tf.nest.flatten(dataset.element_spec)]
    if "GPU" not in device.upper() or tf.string in kinds:
        return dataset
    return dataset.apply(tf.data.experimental.prefetch_to_device(device))
