"""Bytes between the workers of a group, by the collectives of their strategy.

Every rank has to call, in the same order. What is sent are sums of arrays to which all ranks but the sender add zeros;
two bytes stand in a float32, which holds them exactly, and which every device and library can sum.
"""

from typing import Any

import numpy as np

# Values of one collective: 64 MiB.
_AT_ONCE = 16 << 20


class Collectives:
    """One rank's end of it.

    Args:
        strategy: ``MultiWorkerMirroredStrategy`` where there are several workers.
        rank, world_size: of this worker.
    """

    def __init__(self, strategy: Any, rank: int, world_size: int) -> None:
        self._strategy, self._rank, self._world_size = strategy, rank, world_size

    @classmethod
    def of_workers(cls, strategy: Any) -> "Collectives":
        """Of a strategy that spans workers, and so knows their number and this one's rank."""
        return cls(strategy, strategy.cluster_resolver.task_id, strategy.extended._num_workers)

    def gather(self, data: bytes) -> list[bytes]:
        """What every rank gave, by rank."""
        if self._world_size == 1:
            return [data]
        sizes = np.zeros((self._world_size, 2), np.float32)
        sizes[self._rank] = divmod(len(data), 1 << 16)
        lengths = [int(high) << 16 | int(low) for high, low in self._sum(sizes)]
        rows = np.zeros((self._world_size, _values(max(lengths))), np.float32)
        rows[self._rank] = _pack(data, rows.shape[1])
        return [_unpack(row, length) for row, length in zip(self._sum(rows), lengths, strict=True)]

    def broadcast(self, data: bytes | None) -> bytes | None:
        """What rank 0 gave; the others give None."""
        if self._world_size == 1:
            return data
        mine = data if self._rank == 0 else None
        size = np.zeros(4, np.float32)
        if mine is not None:
            size[:] = (1, len(mine) >> 32, len(mine) >> 16 & 0xFFFF, len(mine) & 0xFFFF)
        there, *parts = (int(each) for each in self._sum(size))
        if not there:
            return None
        length = parts[0] << 32 | parts[1] << 16 | parts[2]
        pieces = []
        for start in range(0, length, 2 * _AT_ONCE):
            count = min(2 * _AT_ONCE, length - start)
            piece = b"" if mine is None else mine[start : start + count]
            pieces.append(_unpack(self._sum(_pack(piece, _values(count))), count))
        return b"".join(pieces)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Over all ranks, of arrays of floats; computed in float32."""
        mean = self._sum(values.astype(np.float32)) / self._world_size
        return mean.astype(values.dtype)

    def _sum(self, values: np.ndarray) -> np.ndarray:
        import tensorflow as tf

        replicas = len(self._strategy.extended.worker_devices)

        def of_replica(context: Any) -> Any:
            is_first = context.replica_id_in_sync_group % replicas == 0
            return tf.constant(values if is_first else np.zeros_like(values))

        spread = self._strategy.experimental_distribute_values_from_function(of_replica)
        total: np.ndarray = self._strategy.reduce("SUM", spread, axis=None).numpy()
        return total


def _values(size: int) -> int:
    return max(1, (size + 1) // 2)


def _pack(data: bytes, count: int) -> np.ndarray:
    padded = np.zeros(count, "<u2")
    padded.view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
    return padded.astype(np.float32)


def _unpack(values: np.ndarray, size: int) -> bytes:
    return values.astype("<u2").tobytes()[:size]
