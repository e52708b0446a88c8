"""Finds the address at which the other workers reach this one."""

import contextlib
import ipaddress
import re
import socket
import struct
import sys
from collections.abc import Callable

from ...errors import ClusterError

_SETTING = "tensorflow.spark.distributor.workerNetwork"
# Linux's request code for an interface's IPv4 address.
_SIOCGIFADDR = 0x8915
# The names that gRPC accepts in an address.
_GRPC_NAME = re.compile(r"[A-Za-z0-9.\-]+")


def announced_host(host: str, network: str, *, loopback: bool) -> str:
    """Return the name or address under which the other workers reach this one.

    Args:
        host: This host, as Spark names it.
        network: See :func:`address_in`; "" for any.
        loopback: Whether all workers run on this host. Its loopback address works even if its network changes.

    Raises:
        ClusterError: This host has no address in the network.
    """
    if network:
        return address_in(network, host)
    return "127.0.0.1" if loopback else host


def address_in(network: str, host: str) -> str:
    """Return this host's address in a network.

    Args:
        network: A network interface such as ``"eth1"``, or a subnet such as ``"10.1.0.0/16"``.
        host: The name of this host, for the error.

    Raises:
        ClusterError: This host has no address in that network.
    """
    subnet = _subnet(network)
    found = _of_interface(network) if subnet is None else _in_subnet(subnet)
    if found:
        return found
    own = ", ".join(f"{name} {_of_interface(name) or 'without an address'}" for _, name in socket.if_nameindex())
    what = f"no network interface {network!r}" if subnet is None else f"no address in {network}"
    raise ClusterError(
        f"The host {host} has {what}, which {_SETTING} requires; it has {own}. Set it to an interface that all hosts "
        "have, or to the subnet that connects them, such as 10.1.0.0/16."
    )


def _subnet(network: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(network, strict=False)
    except ValueError:
        return None


def _in_subnet(subnet: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    """Return an address of this host that belongs to a subnet; "" if there is none."""
    for _, name in socket.if_nameindex():
        for address in _addresses(name):
            if ipaddress.ip_address(address) in subnet:
                return address
    # An interface may have more addresses: try the one from which this host would send to the subnet.
    family = socket.AF_INET if subnet.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.connect((str(subnet[min(1, subnet.num_addresses - 1)]), 9))  # sends nothing
        address = str(sock.getsockname()[0])
        if ipaddress.ip_address(address.partition("%")[0]) in subnet:
            return address
    return ""


def _of_interface(name: str) -> str:
    """Return the IPv4 address of a network interface, else its global IPv6 address; "" if it has neither."""
    return next(iter(_addresses(name)), "")


def _addresses(name: str) -> list[str]:
    """Return the first IPv4 address of a network interface, and its global IPv6 addresses."""
    if not sys.platform.startswith("linux"):
        return []
    import fcntl

    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        answer = fcntl.ioctl(sock.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
        found.append(socket.inet_ntoa(answer[20:24]))
    with contextlib.suppress(OSError), open("/proc/net/if_inet6", encoding="ascii") as file:
        for line in file:
            address, _, _, scope, _, interface = line.split()
            if interface == name and scope == "00":  # global
                found.append(str(ipaddress.IPv6Address(bytes.fromhex(address))))
    return found


def _address_of(name: str) -> str:
    """Return an address of a host, an IPv4 address if it has one.

    Raises:
        OSError: The name is unknown.
    """
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return str(min(found, key=lambda each: each[0] != socket.AF_INET)[4][0])


def grpc_address(host: str, port: int, resolve: Callable[[str], str] = _address_of) -> str:
    """Return an address that TensorFlow accepts.

    Args:
        host: A name or an address. An IPv6 address gets brackets. A name with an underscore, such as Docker Compose
            gives to hosts, is not a valid DNS name, and is replaced by its address.
        port: The port.
        resolve: Returns the address of a name.
    """
    host = host.strip("[]")
    if ":" not in host and not _GRPC_NAME.fullmatch(host):
        with contextlib.suppress(OSError):
            host = resolve(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def without_proxy(env: dict[str, str], hosts: list[str]) -> dict[str, str]:
    """Return variables that make TensorFlow's gRPC bypass the proxies in ``env`` when it connects to the other workers.

    Args:
        env: The environment of a trainer.
        hosts: The hosts of all workers.
    """
    names = ("grpc_proxy", "https_proxy", "http_proxy")
    if not any(env.get(each) for each in names):
        return {}
    # gRPC reads no_proxy only if no_grpc_proxy is not set.
    before = [each for each in (env.get("no_grpc_proxy") or env.get("no_proxy", "")).split(",") if each]
    added = [host for host in dict.fromkeys(each.strip("[]") for each in hosts) if host not in before]
    return {"no_grpc_proxy": ",".join([*before, *added])}
