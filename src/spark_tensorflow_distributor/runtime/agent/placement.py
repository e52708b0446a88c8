"""Which rank a task is, and who shares its host. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """Where one worker stands in its group, in the field's words."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    host: str


def hosts_of(addresses: Sequence[str]) -> list[str]:
    """The hosts of Spark's ``host:port`` task addresses; an IPv6 host keeps its brackets."""
    return [address.rsplit(":", 1)[0] if ":" in address else address for address in addresses]


def placements(hosts: Sequence[str]) -> list[Placement]:
    """One placement a partition, in the order of the partitions.

    Spark deals the partitions to hosts in no order (A B B A). Ranks are dealt host by host, so that neighbours in
    the collective's ring share a host, and partition 0 stays rank 0: its value is what the run returns.
    """
    by_host: dict[str, list[int]] = {}
    for partition, host in enumerate(hosts):
        by_host.setdefault(host, []).append(partition)
    placed: dict[int, Placement] = {}
    for node_rank, (host, partitions) in enumerate(by_host.items()):
        for local_rank, partition in enumerate(partitions):
            placed[partition] = Placement(len(placed), len(hosts), local_rank, len(partitions), node_rank, host)
    return [placed[partition] for partition in range(len(hosts))]
