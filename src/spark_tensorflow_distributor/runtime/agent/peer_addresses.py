"""Finds the addresses from which the other workers of a group connect.

A host may have several addresses and connect from any of them, so each worker announces all of its own. If the address
by which the others know a worker is not its own, for example behind network address translation, nobody knows where its
connections come from.
"""

import contextlib
import ipaddress
import re
import socket
from collections.abc import Sequence

from .rendezvous import MemberFacts

_LOCAL_V4 = re.compile(r"\|-- ([\d.]+)\n\s+/32 host LOCAL")


def own_addresses() -> list[str]:
    """Return the addresses of this host's interfaces; none where Linux's /proc does not list them."""
    found: set[str] = set()
    with contextlib.suppress(OSError), open("/proc/net/fib_trie", encoding="ascii") as file:
        found |= set(_LOCAL_V4.findall(file.read()))
    with contextlib.suppress(OSError), open("/proc/net/if_inet6", encoding="ascii") as file:
        found |= {str(ipaddress.IPv6Address(bytes.fromhex(line.split()[0]))) for line in file}
    return sorted(found)


def peer_addresses(members: Sequence[MemberFacts]) -> tuple[tuple[str, ...], str]:
    """Return the addresses of all members' hosts.

    Args:
        members: All members of the group. If TensorFlow's ports are to be filtered, each has its ``sources`` (see
            :func:`own_addresses`).

    Returns:
        The addresses and ``""``; or no addresses and, if ports were to be filtered, a warning.
    """
    if any(member.sources is None for member in members):
        return (), ""
    known: set[str] = set()
    for member in members:
        sources, address = set(member.sources or ()), member.listener.host
        resolved = _resolved(address)
        if not any(each in sources or ipaddress.ip_address(each).is_loopback for each in resolved):
            places = ", ".join(sorted(resolved)) or "no address"
            return (), (
                f"TensorFlow's ports accept connections from every host: rank {member.rank} is known as "
                f"{address} ({places}), which is none of its interfaces "
                f"({', '.join(sorted(sources)) or 'unknown'}), so a filter could lock it out. Restrict the ports with "
                "a firewall (see docs/security.md). tensorflow.spark.distributor.portFilter=false silences this."
            )
        known |= sources | resolved
    return tuple(sorted(known)), ""


def _resolved(host: str) -> set[str]:
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except OSError:
        return set()
    return {str(address[0]).partition("%")[0] for *_, address in found}
