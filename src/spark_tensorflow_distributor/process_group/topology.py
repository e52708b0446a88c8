"""Determines which workers are connected to each other. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

# Up to this number, all leaders are connected to each other.
FULL_MESH = 8


@dataclass(frozen=True)
class Topology:
    """The workers of a group, by machine.

    The workers of a machine exchange data through shared memory. One of them, the machine's leader, exchanges data with
    the leaders of the other machines, so that a machine sends no more than a single worker would.

    Attributes:
        machines: The machine of each rank; workers on the same machine share memory.
        groups: The ranks of each machine; machines are ordered by their lowest rank.
        leaders: The lowest rank of each machine, in the same order.
    """

    machines: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...] = field(init=False)
    leaders: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        by_machine: dict[str, list[int]] = {}
        for rank, machine in enumerate(self.machines):
            by_machine.setdefault(machine, []).append(rank)
        object.__setattr__(self, "groups", tuple(map(tuple, by_machine.values())))
        object.__setattr__(self, "leaders", tuple(group[0] for group in self.groups))

    @property
    def world_size(self) -> int:
        return len(self.machines)

    def group_of(self, rank: int) -> tuple[int, ...]:
        """Return the ranks on the same machine as a rank, including that rank."""
        return next(group for group in self.groups if rank in group)

    def local_peers(self, rank: int) -> set[int]:
        """Return the ranks on the same machine to which a rank is connected."""
        group = self.group_of(rank)
        if rank == group[0]:  # the leader passes the shared memory to all others
            return set(group[1:])
        return _ranks(group, barrier_partners(group.index(rank), len(group))) | {group[0]}

    def remote_peers(self, rank: int) -> set[int]:
        """Return the ranks on other machines to which a rank is connected; none if it is not a leader."""
        if rank not in self.leaders:
            return set()
        size, index = len(self.leaders), self.leaders.index(rank)
        if size <= FULL_MESH:
            return set(self.leaders) - {rank}
        neighbours = [(index - 1) % size, (index + 1) % size]
        return _ranks(self.leaders, [*neighbours, *doubling_partners(index, size)])


def _ranks(group: Sequence[int], indices: Iterable[int]) -> set[int]:
    return {group[index] for index in indices}


def distances(size: int) -> list[int]:
    """Return the distances of a dissemination barrier's rounds: 1, 2, 4, ... below ``size``.

    In each round, a member notifies the member that far ahead, and waits for the member that far behind. After the last
    round, everyone has heard from everyone (Hensgen, Finkel and Manber, Two algorithms for barrier synchronization,
    1988).
    """
    return list(itertools.takewhile(lambda distance: distance < size, (1 << k for k in itertools.count())))


def barrier_partners(index: int, size: int) -> set[int]:
    """Return the members that a member of a dissemination barrier notifies or waits for."""
    return {(index + sign * distance) % size for distance in distances(size) for sign in (1, -1)}


def doubling_partners(index: int, size: int) -> list[int]:
    """Return the partners of a member in recursive doubling, in order.

    Members beyond the largest power of two first pass their data to a member below it, and get the result last (Thakur,
    Rabenseifner and Gropp, Optimization of collective communication operations in MPICH, 2005).
    """
    power = largest_power(size)
    if index >= power:
        return [index - power]
    partners = [index + power] if index + power < size else []
    return partners + [index ^ distance for distance in distances(power)]


def largest_power(size: int) -> int:
    """Return the largest power of two that does not exceed ``size``."""
    return 1 << (size.bit_length() - 1)


def segments(size: int, parts: int) -> list[tuple[int, int]]:
    """Cut ``size`` elements into ``parts`` ranges whose lengths differ by at most one."""
    bounds = [size * part // parts for part in range(parts + 1)]
    return list(itertools.pairwise(bounds))
