"""How the workers learn each other's addresses: through the driver's channel, or else through Spark's allGather.

The channel takes milliseconds. Every call of Spark's allGather takes a full second, whatever it carries, because
Spark polls it once a second; but it works wherever Spark itself does, so it is the way where the executors cannot
reach the driver. All ranks must take the same way: who cannot connect goes to allGather, and the driver sends
those that did connect there too, once it has missed a rank for some seconds (see ``driver.group``).
"""

import errno
import json
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ...errors import ClusterError, RendezvousError
from .link import DriverLink, expect


class Stopped(Exception):
    """The driver ends this worker because another one failed."""


class Barrier(Protocol):
    """What a rank needs of Spark's BarrierTaskContext."""

    def allGather(self, message: str = "") -> list[str]: ...

    def barrier(self) -> None: ...


def hold_port(ports: range | None = None) -> socket.socket:
    """A socket bound to a free port of this host, which holds that port until it is closed.

    Args:
        ports: to choose from; None for any.

    Raises:
        ClusterError: all of ``ports`` are taken.

    TensorFlow does not set SO_REUSEPORT, so the port has to be released just before TensorFlow binds it; it is held
    until then, through the import of TensorFlow and the meeting.
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
        "tensorflow.spark.distributor.workerPorts: each worker of a host needs one."
    )


def meet(
    member: Mapping[str, Any], world_size: int, link: DriverLink, barrier: Barrier, deadline: float
) -> tuple[list[dict[str, Any]], str]:
    """Collectives what each rank says of itself.

    Args:
        member: this rank's part: rank, host, port, tensorflow and more, all JSON.
        world_size: how many ranks there are.
        link: the driver's channel, connected or not.
        barrier: Spark's barrier of this task.
        deadline: when to give up waiting for the driver, on ``time.monotonic()``'s clock.

    Returns:
        The members by rank, and the way it went: ``"channel"`` or ``"allGather"``.

    Raises:
        Stopped: another worker failed, or not all came in time.
        RendezvousError: the driver was lost meanwhile.
        ClusterError: the workers do not have the same TensorFlow.
    """
    members: Sequence[dict[str, Any]] | None = None
    if link.is_open:
        link.send({"type": "join", "member": dict(member)})
        silence = "The driver did not answer within start_timeout."
        answer = expect(link, deadline, silence=silence)
        while answer["type"] not in ("members", "use_all_gather", "stop"):
            answer = expect(link, deadline, silence=silence)
        if answer["type"] == "stop":
            raise Stopped(answer["reason"])
        members = answer.get("members")
    way = "channel"
    if members is None:
        way = "allGather"
        members = [json.loads(text) for text in barrier.allGather(json.dumps(member))]
    by_rank = sorted(members, key=lambda each: int(each["rank"]))
    if [each["rank"] for each in by_rank] != list(range(world_size)):
        raise RendezvousError(f"Expected ranks 0 to {world_size - 1}, met {[m['rank'] for m in by_rank]}.")
    check_versions(by_rank)
    return by_rank, way


def check_versions(members: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a group whose workers have different versions of TensorFlow.

    Raises:
        ClusterError: they differ in more than the patch version.
    """
    by_version: dict[str, list[str]] = {}
    for member in members:
        version = str(member.get("tensorflow") or "none")
        by_version.setdefault(".".join(version.split(".")[:2]), []).append(f"{member['host']} ({version})")
    if len(by_version) > 1:
        found = "; ".join(f"{version}: {', '.join(sorted(set(hosts)))}" for version, hosts in by_version.items())
        raise ClusterError(
            f"The workers have different versions of TensorFlow: {found}. Install one version on all hosts, or "
            "choose an interpreter that all of them have, with spark.pyspark.python."
        )


def cluster_spec(members: Sequence[Mapping[str, Any]], *, loopback: bool) -> dict[str, list[str]]:
    """TF_CONFIG's ``cluster``: the workers' ``host:port`` in the order of their ranks.

    Args:
        members: as :func:`meet` returned them.
        loopback: all workers run in the driver's own process tree (Spark's master is ``local``), so the loopback
            address serves whatever becomes of the machine's network.
    """
    return {"worker": [f"{'127.0.0.1' if loopback else m['host']}:{m['port']}" for m in members]}


def deadline_after(seconds: float) -> float:
    return time.monotonic() + seconds
