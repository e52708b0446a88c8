"""Describes a process group to its members; travels as JSON."""

from dataclasses import dataclass, field

from ..transport.sealing import Protection
from .topology import Topology


@dataclass(frozen=True)
class Member:
    """How the others reach a member.

    Attributes:
        host: Name or address of its host.
        port: The port on which it listens for members on other machines.
        machine: Members share memory if theirs is the same and not empty.
        local_name: Hexadecimal name of the local socket on which it listens for members on the same machine.
    """

    host: str
    port: int
    machine: str = ""
    local_name: str = ""


@dataclass(frozen=True)
class GroupSpec:
    """A group, as one of its members forms it.

    Attributes:
        rank: The rank of this member.
        members: All members, by rank.
        secret: Hexadecimal; known to the members only.
        epoch: Sequence number of the group; a relaunch forms the next one.
        protection: How traffic between hosts is protected.
    """

    rank: int
    members: tuple[Member, ...]
    secret: str = field(repr=False)
    epoch: int = 0
    protection: Protection = "light"

    @property
    def topology(self) -> Topology:
        # A member that shares memory with nobody is a machine of its own.
        return Topology(tuple(each.machine or f"rank {rank}" for rank, each in enumerate(self.members)))
