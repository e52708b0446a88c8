"""Patches that Keras 3 needs under TensorFlow's MultiWorkerMirroredStrategy, for workers with several GPUs."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import tensorflow as tf

from ...data.passes import shard_states_of
from ..keras_api import defining_class
from ..private_names import KERAS_TRAINER
from ..replica import ReplicaStrategy
from ..shard_feeding import distribute_shard


def mirrored(keras: ModuleType) -> None:
    """Build models from the shapes of their data, and average logs over the workers only.

    To build a model, Keras consumes a batch and averages it over the workers, which fails if shapes differ. It also
    averages logs along their first axis, which scalars do not have.
    """
    trainer = KERAS_TRAINER.load()
    model_class, reduce_all = trainer.TensorFlowTrainer, trainer.reduce_per_replica
    build = model_class._maybe_symbolic_build

    @functools.wraps(build)
    def maybe_symbolic_build(self: Any, iterator: Any = None, data_batch: Any = None) -> Any:
        strategy = self._distribute_strategy
        if iterator is None or not _is_mirrored(strategy):
            return build(self, iterator=iterator, data_batch=data_batch)
        with strategy.scope():
            return self._symbolic_build(data_batch=_shapes(iterator._distributed_dataset.element_spec))

    @functools.wraps(reduce_all)
    def reduce_per_replica(values: Any, strategy: tf.distribute.Strategy, reduction: str) -> Any:
        if reduction not in ("auto", "mean", "sum") or not _is_mirrored(strategy):
            return reduce_all(values, strategy, reduction)
        operation = "SUM" if reduction == "sum" else "MEAN"
        return tf.nest.map_structure(lambda value: strategy.reduce(operation, value, axis=None), values)

    model_class._maybe_symbolic_build = maybe_symbolic_build
    trainer.reduce_per_replica = reduce_per_replica  # type: ignore[attr-defined]


def _is_mirrored(strategy: tf.distribute.Strategy | None) -> bool:
    """Return whether the strategy is TensorFlow's own and spans several workers."""
    return (
        isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        and not isinstance(strategy, ReplicaStrategy)
        and bool(strategy.num_replicas_in_sync > len(strategy.extended.worker_devices))
    )


def _shapes(spec: Any) -> Any:
    def local_spec(leaf: Any) -> Any:
        leaf = getattr(leaf, "_value_specs", (leaf,))[0]  # a distributed value has one spec per replica
        return leaf if hasattr(leaf, "shape") and hasattr(leaf, "dtype") else None

    return tf.nest.map_structure(local_spec, spec)


def feed_mirrored() -> None:
    """Let ``MultiWorkerMirroredStrategy`` treat a shard's dataset as this worker's part of the data.

    Otherwise the strategy would take the shard for the whole data and divide each batch by the number of workers, which
    would silently lose rows.
    """
    owner = defining_class(tf.distribute.MultiWorkerMirroredStrategy, "experimental_distribute_dataset")
    original = owner.experimental_distribute_dataset

    @functools.wraps(original)
    def experimental_distribute_dataset(self: tf.distribute.Strategy, dataset: Any, options: Any = None) -> Any:
        states = shard_states_of(dataset)
        if not states or isinstance(self, ReplicaStrategy):
            return original(self, dataset, options)
        replicas = len(self.extended.worker_devices)
        if replicas > 1:
            dataset = dataset.rebatch(-(-states[0].whole.batch // replicas))
        return distribute_shard(self, dataset, options)

    owner.experimental_distribute_dataset = experimental_distribute_dataset
