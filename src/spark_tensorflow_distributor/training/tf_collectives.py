"""Collectives over TensorFlow's own collective runtime: gRPC between CPUs, NCCL between GPUs."""

from __future__ import annotations

import tensorflow as tf

from .collectives import NO_COLLECTIVES, Collectives
from .replica import ReplicaStrategy


class TensorFlowCollectives(Collectives):
    """The collectives of a group that a ``MultiWorkerMirroredStrategy`` formed.

    The strategy's constructor starts this worker's server and waits for its peers. Its variables and its convention for
    losses are not used.

    Args:
        strategy: A ``MultiWorkerMirroredStrategy`` with one device per worker.
    """

    def __init__(self, strategy: tf.distribute.MultiWorkerMirroredStrategy) -> None:
        extended = strategy.extended
        super().__init__(strategy.cluster_resolver.task_id or 0, strategy.num_replicas_in_sync)
        self._strategy = strategy  # keeps the server alive
        (self._device,) = extended.worker_devices
        # The launcher numbers collectives when functions are called, not when they are traced, so workers may trace
        # their functions at different times.
        (self._launcher,) = extended._cross_device_ops._launchers

    def _sum(self, tensor: tf.Tensor) -> tf.Tensor:
        with tf.device(self._device):
            return self._launcher.all_reduce(tensor)

    def _stack(self, tensor: tf.Tensor) -> tf.Tensor:
        if tensor.dtype == tf.bfloat16:  # TensorFlow can reduce it, but not gather it
            return tf.bitcast(self._stack(tf.bitcast(tensor, tf.float16)), tf.bfloat16)
        with tf.device(self._device):
            gathered = self._launcher._all_gather(tf.expand_dims(tensor, 0), None)
        return tf.ensure_shape(gathered, [self.world_size, *tensor.shape])


class MirroredCollectives(Collectives):
    """The collectives of workers with several devices each; for eager mode only.

    Args:
        strategy: A ``MultiWorkerMirroredStrategy``.
        rank: This worker's rank.
        world_size: The number of workers.
    """

    def __init__(self, strategy: tf.distribute.Strategy, rank: int, world_size: int) -> None:
        super().__init__(rank, world_size)
        self._strategy = strategy

    def _sum(self, tensor: tf.Tensor) -> tf.Tensor:
        local_replicas = len(self._strategy.extended.worker_devices)

        def value_of(context: tf.distribute.experimental.ValueContext) -> tf.Tensor:
            return tensor if context.replica_id_in_sync_group % local_replicas == 0 else tf.zeros_like(tensor)

        distributed = self._strategy.experimental_distribute_values_from_function(value_of)
        return self._strategy.reduce("SUM", distributed, axis=None)

    def _stack(self, tensor: tf.Tensor) -> tf.Tensor:
        rows = [tensor if rank == self.rank else tf.zeros_like(tensor) for rank in range(self.world_size)]
        return self._sum(tf.stack(rows))


def collectives_of(strategy: tf.distribute.Strategy, rank: int, world_size: int) -> Collectives:
    """Return the collectives of the workers that a strategy spans, or NO_COLLECTIVES if it spans only this one.

    Args:
        strategy: The strategy of a model.
        rank: This worker's rank.
        world_size: The number of workers.
    """
    if isinstance(strategy, ReplicaStrategy):
        return strategy.collectives
    if world_size == 1 or strategy.num_replicas_in_sync < world_size:
        return NO_COLLECTIVES
    return MirroredCollectives(strategy, rank, world_size)
