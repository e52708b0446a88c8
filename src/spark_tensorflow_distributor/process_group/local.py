"""Collectives between the workers of one machine, through shared memory."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from .arrays import AnyArray
from .connection import Connection
from .frames import Operation
from .topology import distances, segments
from .transfers import Array, Receiver, Sender, transfer

# Data passes through the memory in blocks that fit into a core's cache.
BLOCK_BYTES = 1 << 20
# If each block also waits for other machines, larger blocks pay off.
MULTI_MACHINE_BLOCK_BYTES = 8 << 20
# Up to this size, each worker sums the whole block, because summing one segment each would need a second barrier.
_SMALL_BYTES = 32 << 10


def memory_bytes(size: int, block_bytes: int) -> int:
    """Return the size of the shared memory for ``size`` workers, in bytes."""
    return 2 * (size + 1) * block_bytes


class LocalGroup:
    """The workers of a machine, as seen by one of them.

    The memory has two halves, used in turn, each with a block for every worker and one for their sum. One barrier per
    block, after writing, is enough: a worker writes to a half again only after the barrier of the other half, which no
    worker reaches before it has finished reading this half.

    Args:
        index: The index of this worker.
        size: The number of workers.
        connections: By index of the worker at the other end; see ``Topology.local_peers``.
        memory: ``memory_bytes`` of memory that all workers share.
        block_bytes: Size of a block in bytes.
    """

    def __init__(
        self,
        index: int,
        size: int,
        connections: Mapping[int, Connection],
        memory: mmap.mmap,
        block_bytes: int,
    ) -> None:
        self.index, self.size, self.connections = index, size, dict(connections)
        self._block_bytes = block_bytes
        self._half = 0
        self._watched = tuple(self.connections.values())
        blocks = np.frombuffer(memory, np.uint8, memory_bytes(size, block_bytes))
        self._blocks = blocks.reshape(2, size + 1, block_bytes)

    def barrier(self, operation: Operation) -> None:
        """Wait until every worker of the machine has called this."""
        for distance in distances(self.size):
            after = self.connections[(self.index + distance) % self.size]
            before = self.connections[(self.index - distance) % self.size]
            transfer([Sender(after, operation, [])], [Receiver(before, operation, [])], self._watched)

    def all_reduce(
        self,
        operation: Operation,
        fill: Callable[[int, int, Array], None],
        target: AnyArray,
        between: Callable[[Array], None] | None = None,
    ) -> None:
        """Sum an array over the workers of this machine, or of several machines.

        Args:
            operation: The operation.
            fill: Copies a section of this worker's array, given by its first element and its end, to an array.
            target: Receives the sums; its type may differ from the operation's.
            between: Called on the leader with this machine's sums, to replace them with the sums over all machines;
                None if there are no other machines. The other workers may pass any function.
        """
        dtype = np.dtype(operation.dtype)
        for start, stop, blocks in self._blocks_for(target.size, dtype):
            *parts, total = blocks
            fill(start, stop, parts[self.index])
            self.barrier(operation)
            if between is None and (self.size == 2 or total.nbytes <= _SMALL_BYTES):
                _sum_into(target[start:stop], parts)
                continue
            begin, end = segments(stop - start, self.size)[self.index]
            _sum([part[begin:end] for part in parts], total[begin:end])
            self.barrier(operation)
            if between is not None:
                if self.index == 0:
                    between(total)
                self.barrier(operation)
            np.copyto(target[start:stop], total, casting="unsafe")

    def all_gather(self, operation: Operation, row: Array, rows: list[Array]) -> None:
        """Gather the rows of all workers of this machine, which have the same number of bytes, into ``rows``."""
        for start, stop, blocks in self._blocks_for(row.size, np.dtype(np.uint8)):
            blocks[self.index][:] = row[start:stop]
            self.barrier(operation)
            for target, block in zip(rows, blocks, strict=False):
                target[start:stop] = block

    def broadcast(self, operation: Operation, data: Array) -> None:
        """Replace the data with the leader's data."""
        for start, stop, blocks in self._blocks_for(data.size, np.dtype(np.uint8)):
            if self.index == 0:
                blocks[-1][:] = data[start:stop]
            self.barrier(operation)
            if self.index:
                data[start:stop] = blocks[-1]

    def _blocks_for(self, size: int, dtype: np.dtype[Any]) -> Iterator[tuple[int, int, list[Array]]]:
        """Yield ranges of elements, each with views of the next blocks: the workers' and the one for the sum."""
        step = self._block_bytes // dtype.itemsize
        for start in range(0, size, step) if size else [0]:
            stop = min(start + step, size)
            yield start, stop, [block.view(dtype)[: stop - start] for block in self._blocks[self._half]]
            self._half ^= 1


def _sum(parts: list[Array], total: AnyArray) -> None:
    if len(parts) == 1:
        np.copyto(total, parts[0])
        return
    np.add(parts[0], parts[1], out=total)
    for part in parts[2:]:
        np.add(total, part, out=total)


def _sum_into(target: AnyArray, parts: list[Array]) -> None:
    if target.dtype == parts[0].dtype:
        _sum(parts, target)
    else:
        total = np.empty_like(parts[0])
        _sum(parts, total)
        np.copyto(target, total, casting="unsafe")
