"""Collectives over the workers of a group, built on their strategy.

Every rank must make the same calls in the same order. Each one sums arrays to which all ranks but the sender contribute
zeros. Two bytes travel in a float32, which holds them exactly and which every device and library can sum.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

# Values of one collective: 64 MiB.
_CHUNK_VALUES = 16 << 20


class Collectives:
    """One rank's end of the collectives.

    Args:
        strategy: A ``MultiWorkerMirroredStrategy`` if there are several workers.
        rank: This worker's rank.
        world_size: The number of workers.
    """

    def __init__(self, strategy: tf.distribute.Strategy, rank: int, world_size: int) -> None:
        self._strategy, self._rank, self._world_size = strategy, rank, world_size

    @classmethod
    def of_workers(cls, strategy: tf.distribute.Strategy) -> Collectives:
        """Create from a strategy that spans workers, and so knows their number and this one's rank."""
        return cls(strategy, strategy.cluster_resolver.task_id, strategy.extended._num_workers)

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Return what every rank passed, by rank."""
        if self._world_size == 1:
            return [data]
        sizes = np.zeros((self._world_size, 2), np.float32)
        sizes[self._rank] = divmod(len(data), 1 << 16)
        lengths = [int(high) << 16 | int(low) for high, low in self._sum(sizes)]
        rows = np.zeros((self._world_size, _value_count(max(lengths))), np.float32)
        rows[self._rank] = _pack(data, rows.shape[1])
        return [_unpack(row, length) for row, length in zip(self._sum(rows), lengths, strict=True)]

    def broadcast_bytes(self, data: bytes | None) -> bytes | None:
        """Return what rank 0 passed; the argument of the other ranks is ignored."""
        if self._world_size == 1:
            return data
        to_send = data if self._rank == 0 else None
        header = np.zeros(4, np.float32)
        if to_send is not None:
            size = len(to_send)
            header[:] = (1, size >> 32, size >> 16 & 0xFFFF, size & 0xFFFF)
        has_data, high, middle, low = (int(value) for value in self._sum(header))
        if not has_data:
            return None
        length = high << 32 | middle << 16 | low
        chunks = []
        for start in range(0, length, 2 * _CHUNK_VALUES):
            count = min(2 * _CHUNK_VALUES, length - start)
            chunk = b"" if to_send is None else to_send[start : start + count]
            chunks.append(_unpack(self._sum(_pack(chunk, _value_count(count))), count))
        return b"".join(chunks)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Return the mean over all ranks of an array of floats, computed in float32."""
        mean = self._sum(values.astype(np.float32)) / self._world_size
        return mean.astype(values.dtype)

    def _sum(self, values: np.ndarray) -> np.ndarray:
        local_replicas = len(self._strategy.extended.worker_devices)

        def value_of(context: tf.distribute.experimental.ValueContext) -> tf.Tensor:
            is_first = context.replica_id_in_sync_group % local_replicas == 0
            return tf.constant(values if is_first else np.zeros_like(values))

        distributed = self._strategy.experimental_distribute_values_from_function(value_of)
        total: np.ndarray = self._strategy.reduce("SUM", distributed, axis=None).numpy()
        return total


def _value_count(size: int) -> int:
    return max(1, (size + 1) // 2)


def _pack(data: bytes, count: int) -> np.ndarray:
    padded = np.zeros(count, "<u2")
    padded.view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
    return padded.astype(np.float32)


def _unpack(values: np.ndarray, size: int) -> bytes:
    return values.astype("<u2").tobytes()[:size]
