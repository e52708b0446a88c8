"""Collectives between the leaders of different machines, over their connections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .connection import Connection
from .frames import Operation
from .topology import FULL_MESH, doubling_partners, largest_power, segments
from .transfers import Array, Receiver, Sender, transfer

# Up to this size, latency (the number of rounds) dominates; above it, bandwidth.
_SMALL_BYTES = 64 << 10


class RemoteGroup:
    """The leaders, as seen by one of them.

    Args:
        index: The index of this leader.
        size: The number of leaders.
        connections: By index of the leader at the other end; see ``Topology.remote_peers``.
    """

    def __init__(self, index: int, size: int, connections: Mapping[int, Connection]) -> None:
        self.index, self.size, self.connections = index, size, dict(connections)
        self._watched = tuple(self.connections.values())

    def _transfer(self, senders: Sequence[Sender], receivers: Sequence[Receiver]) -> None:
        transfer(senders, receivers, self._watched)

    def all_reduce(self, operation: Operation, array: Array, wire: np.dtype[Any] | None = None) -> None:
        """Replace an array with the sum of all leaders' arrays, bit for bit the same on all of them.

        Args:
            operation: The operation.
            array: The array.
            wire: The type in which a large array is sent; by default, the array's own.
        """
        if self.size == 1:
            return
        if array.nbytes > _SMALL_BYTES:
            sent = array if wire is None else array.astype(wire)
            self._begin(operation)
            self._reduce_in_ring(operation, array, sent)
            if sent is not array:
                array[:] = sent
        elif self.size <= FULL_MESH:
            self._reduce_directly(operation, array)
        else:
            self._reduce_by_doubling(operation, array)

    def all_gather(self, operation: Operation, blocks: list[Array]) -> None:
        """Fill the blocks of the other leaders; block sizes may differ, but every leader knows them."""
        if self.size > 1:
            steps = range(self.size - 1)
            self._begin(operation)
            self._pass_round(
                operation,
                [blocks[(self.index - step) % self.size] for step in steps],
                [blocks[(self.index - 1 - step) % self.size] for step in steps],
            )

    def _begin(self, operation: Operation) -> None:
        """Exchange a byte in the pattern with which all operations begin.

        Otherwise, leaders that are not all connected to each other could wait in a circle, each for a neighbour that is
        in a different operation, and none of them would notice.
        """
        if self.size > FULL_MESH:
            self._reduce_by_doubling(operation, np.zeros(1, np.uint8))

    def _reduce_in_ring(self, operation: Operation, own: Array, sums: Array) -> None:
        """Reduce-scatter and all-gather in a ring: each leader sends and receives twice the array, less two segments.

        Patarasuk and Yuan, Bandwidth optimal all-reduce algorithms for clusters of workstations, 2009.

        Args:
            operation: The operation.
            own: This leader's values.
            sums: The same values in the type that is sent, to be replaced by the sums. May be the same array as
                ``own``.
        """
        bounds = segments(own.size, self.size)
        terms, parts = ([array[begin:end] for begin, end in bounds] for array in (own, sums))
        steps = range(2 * self.size - 2)
        self._pass_round(
            operation,
            [parts[(self.index - step) % self.size] for step in steps],
            [parts[(self.index - 1 - step) % self.size] for step in steps],
            [terms[(self.index - 1 - step) % self.size] for step in range(self.size - 1)],
        )

    def _pass_round(
        self, operation: Operation, sends: list[Array], receives: list[Array], terms: Sequence[Array] = ()
    ) -> None:
        after, before = ((self.index + step) % self.size for step in (1, -1))
        receiver = Receiver(self.connections[before], operation, receives, terms)
        sender = Sender(self.connections[after], operation, sends, follows=receiver)
        self._transfer([sender], [receiver])

    def _reduce_directly(self, operation: Operation, array: Array) -> None:
        rows = np.empty((self.size, array.size), array.dtype)
        rows[self.index] = array
        peers = self.connections.items()
        self._transfer(
            [Sender(peer, operation, [array]) for _, peer in peers],
            [Receiver(peer, operation, [rows[index]]) for index, peer in peers],
        )
        array[:] = rows[0]
        for row in rows[1:]:
            array += row

    def _reduce_by_doubling(self, operation: Operation, array: Array) -> None:
        power, partners = largest_power(self.size), doubling_partners(self.index, self.size)
        if self.index >= power:
            peer = self.connections[partners[0]]
            self._transfer([Sender(peer, operation, [array])], [])
            self._transfer([], [Receiver(peer, operation, [array])])
            return
        helped = self.connections[partners.pop(0)] if self.index + power < self.size else None
        if helped is not None:
            self._transfer([], [Receiver(helped, operation, [array], [array])])
        other = np.empty_like(array)
        for partner in partners:
            peer = self.connections[partner]
            self._transfer([Sender(peer, operation, [array])], [Receiver(peer, operation, [other])])
            array += other
        if helped is not None:
            self._transfer([Sender(helped, operation, [array])], [])
