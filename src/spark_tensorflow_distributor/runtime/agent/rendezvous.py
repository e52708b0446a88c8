"""Exchanges the workers' addresses through the driver's channel or, if that is unreachable, Spark's allGather.

The channel takes milliseconds. A call of allGather takes a full second, because Spark polls once a second, but it works
wherever Spark works. All ranks must use the same method. A rank that cannot connect to the driver calls allGather; if a
rank has not joined after some seconds, the driver makes all others call it, too (see ``driver.group``). In this call,
each rank says whether it has a channel. If all have one, a rank was only late, and the channel is used from then on.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from ...errors import ClusterError, RendezvousError
from ...process_group.spec import GroupSpec, Member
from ...training.keras_api import major_and_minor
from ...transport.handshake import derive_secret
from ...transport.sealing import Protection
from ..barrier import AllGather, keep_alive
from ..wire import Message, from_columns, from_json
from .addresses import grpc_address
from .link import DriverLink


@dataclass(frozen=True)
class MemberFacts:
    """Describes a rank to the others.

    Attributes:
        rank: The rank.
        host: Its host, as Spark names it.
        tensorflow: Version of TensorFlow; "" if it is not installed.
        listener: Where it listens.
        sources: The addresses from which it may connect; None if TensorFlow's ports are not to be filtered.
        has_channel: Whether it has a connection to the driver.
    """

    rank: int
    host: str
    tensorflow: str
    listener: Member
    sources: tuple[str, ...] | None = None
    has_channel: bool = True


class Stopped(Exception):
    """The driver has stopped this worker because another one failed."""


def exchange_addresses(
    member: MemberFacts, world_size: int, link: DriverLink, all_gather: AllGather, deadline: float
) -> tuple[list[MemberFacts], str]:
    """Exchange addresses with the other ranks.

    Args:
        member: Describes this rank.
        world_size: Number of ranks.
        link: The driver's channel, connected or not.
        all_gather: Spark's allGather in this task.
        deadline: When to give up waiting for the driver, by ``time.monotonic()``.

    Returns:
        All members by rank, and the method that the group must use from now on: ``"channel"``, or ``"allGather"`` if
        some members cannot reach the driver.

    Raises:
        Stopped: Another worker failed, or not all workers joined in time.
        RendezvousError: The connection to the driver was lost in the meantime.
        ClusterError: The workers have different versions of TensorFlow.
    """
    members: Sequence[MemberFacts] | None = None
    if link.is_open:
        link.send({"type": "join", "member": asdict(member)})
        answer: Message = {"type": ""}
        while answer["type"] not in ("members", "use_all_gather", "stop"):
            answer = link.wait_for_message(deadline, silence="The driver did not answer within start_timeout.")
        if answer["type"] == "stop":
            raise Stopped(answer["reason"])
        if answer["type"] == "members":
            members = [from_json(MemberFacts, each) for each in from_columns(answer["members"])]
    method = "channel"
    if members is None:
        own = json.dumps(asdict(replace(member, has_channel=link.is_open)))
        texts = keep_alive(lambda: all_gather(own), link.send_heartbeat)
        members = [from_json(MemberFacts, json.loads(text)) for text in texts]
        if not all(each.has_channel for each in members):
            method = "allGather"
        link.send({"type": "met"})
    by_rank = sorted(members, key=lambda each: each.rank)
    found = [each.rank for each in by_rank]
    if found != list(range(world_size)):
        raise RendezvousError(f"Expected ranks 0 to {world_size - 1}, found {found}.")
    check_versions(by_rank)
    return by_rank, method


def check_versions(members: Sequence[MemberFacts]) -> None:
    """Reject a group whose workers have different versions of TensorFlow.

    Raises:
        ClusterError: The versions differ in more than the patch number.
    """
    by_version: dict[tuple[int, ...], list[str]] = {}
    for member in members:
        version = member.tensorflow or "none"
        by_version.setdefault(major_and_minor(version), []).append(f"{member.host} ({version})")
    if len(by_version) > 1:
        found = "; ".join(", ".join(sorted(set(hosts))) for hosts in by_version.values())
        raise ClusterError(
            f"The workers have different versions of TensorFlow: {found}. Install the same version on all hosts, or "
            "set spark.pyspark.python to an interpreter that has it on all of them."
        )


def cluster_spec(members: Sequence[MemberFacts]) -> dict[str, list[str]]:
    """Return TF_CONFIG's ``cluster``: the workers' ``host:port`` in rank order.

    Args:
        members: The result of :func:`exchange_addresses`.
    """
    return {"worker": [grpc_address(member.listener.host, member.listener.port) for member in members]}


def group_spec(
    rank: int, members: Sequence[MemberFacts], secret: bytes, attempt: int, protection: Protection
) -> GroupSpec:
    """Return the process group of the workers.

    Args:
        rank: This worker's rank.
        members: The result of :func:`exchange_addresses`.
        secret: The launch's secret, from which the group's secret is derived.
        attempt: See ``TaskSpec``.
        protection: See ``RunPlan``.
    """
    of_group = derive_secret(secret, b"process group").hex()
    return GroupSpec(rank, tuple(member.listener for member in members), of_group, attempt, protection)


def deadline_after(seconds: float) -> float:
    return time.monotonic() + seconds
