"""Describes a process group to its members; travels as JSON."""

from dataclasses import dataclass, field

from ..transport.sealing import Protection
from .topology import Topology


@dataclass(frozen=True)
class Member:
    """How other members reach a member.

    Attributes:
        host: Name or address of the member's host.
        port: The port on which the member listens for members on other machines.
        machine: Identifies the machine; members with the same value, if it is not empty, share memory.
        local_name: Hexadecimal name of the local socket on which the member listens for members on the same machine.
    """

    host: str
    port: int
    machine: str = ""
    local_name: str = ""


@dataclass(frozen=True)
class GroupSpec:
    """What a member must know to form a group.

    Attributes:
        rank: The rank of this member.
        members: All members, by rank.
        secret: The group's secret, in hexadecimal; known only to the members.
        generation: Sequence number of the group; a relaunch forms the next one.
        protection: How traffic between hosts is protected.
    """

    rank: int
    members: tuple[Member, ...]
    secret: str = field(repr=False)
    generation: int = 0
    protection: Protection = "light"

    @property
    def topology(self) -> Topology:
        # A member that shares no memory counts as a separate machine.
        return Topology(tuple(each.machine or f"rank {rank}" for rank, each in enumerate(self.members)))
