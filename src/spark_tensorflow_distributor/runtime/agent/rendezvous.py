"""Exchanges the workers' addresses through the driver's channel or, if that is unreachable, Spark's allGather.

The channel takes milliseconds. A call of allGather takes a full second whatever it carries, because Spark polls once a
second, but it works wherever Spark works. All ranks must use the same method. A rank that cannot connect to the driver
calls allGather; after missing a rank for some seconds, the driver tells all others to do the same (see
``driver.group``).
"""

import errno
import json
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from ...errors import ClusterError, RendezvousError
from ..barrier import AllGather
from ..wire import Message
from .link import DriverLink

# Describes a rank to the others: rank, host, port and tensorflow.
Member: TypeAlias = Mapping[str, Any]


class Stopped(Exception):
    """The driver has stopped this worker because another one failed."""


def hold_port(ports: range | None = None) -> socket.socket:
    """Return a socket bound to a free port of this host, which reserves that port until it is closed.

    TensorFlow does not set SO_REUSEPORT, so the port must be released just before TensorFlow binds it. Until then,
    this socket keeps other processes from taking it.

    Args:
        ports: The ports to choose from; None for any.

    Raises:
        ClusterError: All of ``ports`` are taken.
    """
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    holder = socket.socket(family, socket.SOCK_STREAM)
    if family == socket.AF_INET6:
        holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    for port in ports or (0,):
        try:
            holder.bind(("", port))
            return holder
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    holder.close()
    assert ports is not None
    raise ClusterError(
        f"All ports from {ports.start} to {ports.stop - 1} are taken on {socket.gethostname()}. Widen "
        "tensorflow.spark.distributor.workerPorts: each worker on a host needs one port."
    )


def meet(
    member: Member, world_size: int, link: DriverLink, all_gather: AllGather, deadline: float
) -> tuple[list[Member], str]:
    """Exchange addresses with the other ranks.

    Args:
        member: Describes this rank.
        world_size: Number of ranks.
        link: The driver's channel, connected or not.
        all_gather: Spark's allGather in this task.
        deadline: When to give up waiting for the driver, by ``time.monotonic()``.

    Returns:
        All members by rank, and the method by which they met: ``"channel"`` or ``"allGather"``.

    Raises:
        Stopped: Another worker failed, or not all workers joined in time.
        RendezvousError: The connection to the driver was lost in the meantime.
        ClusterError: The workers have different versions of TensorFlow.
    """
    members: Sequence[Member] | None = None
    if link.is_open:
        link.send({"type": "join", "member": dict(member)})
        answer: Message = {"type": ""}
        while answer["type"] not in ("members", "use_all_gather", "stop"):
            answer = link.wait_for_message(deadline, silence="The driver did not answer within start_timeout.")
        if answer["type"] == "stop":
            raise Stopped(answer["reason"])
        members = answer.get("members")
    method = "channel"
    if members is None:
        method = "allGather"
        members = [json.loads(text) for text in all_gather(json.dumps(member))]
    by_rank = sorted(members, key=lambda each: int(each["rank"]))
    found = [each["rank"] for each in by_rank]
    if found != list(range(world_size)):
        raise RendezvousError(f"Expected ranks 0 to {world_size - 1}, met {found}.")
    check_versions(by_rank)
    return by_rank, method


def check_versions(members: Sequence[Member]) -> None:
    """Reject a group whose workers have different versions of TensorFlow.

    Raises:
        ClusterError: They differ in more than the patch version.
    """
    by_version: dict[str, list[str]] = {}
    for member in members:
        version = str(member.get("tensorflow") or "none")
        by_version.setdefault(".".join(version.split(".")[:2]), []).append(f"{member['host']} ({version})")
    if len(by_version) > 1:
        found = "; ".join(f"{version}: {', '.join(sorted(set(hosts)))}" for version, hosts in by_version.items())
        raise ClusterError(
            f"The workers have different versions of TensorFlow: {found}. Install the same version on all hosts, or "
            "set spark.pyspark.python to an interpreter that has it on all of them."
        )


def cluster_spec(members: Sequence[Member], *, loopback: bool) -> dict[str, list[str]]:
    """Return TF_CONFIG's ``cluster``: the workers' ``host:port`` in rank order.

    Args:
        members: The result of :func:`meet`.
        loopback: All workers run on the driver's own host (Spark's master is ``local``). The loopback address then
            works even if the machine's network changes.
    """
    return {"worker": [f"{'127.0.0.1' if loopback else m['host']}:{m['port']}" for m in members]}


def deadline_after(seconds: float) -> float:
    return time.monotonic() + seconds
