"""Opens the sockets on which a worker accepts the others' connections, before their addresses are announced."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import ipaddress
import os
import socket
import sys
from dataclasses import dataclass

from ...errors import ClusterError
from ...process_group.spec import Member

# Connections wait here until the trainer accepts them.
_BACKLOG = 1024


@dataclass
class Listeners:
    """A worker's sockets.

    Attributes:
        remote: Bound to the worker's port.
        local: Listens for workers on the same machine; unbound where that is not possible.
        host: The name or address at which the others reach ``remote``.
    """

    remote: socket.socket
    local: socket.socket
    host: str

    def close(self) -> None:
        self.remote.close()
        self.local.close()

    @property
    def port(self) -> int:
        return int(self.remote.getsockname()[1])

    @property
    def member(self) -> Member:
        """How the others reach this worker."""
        name = self.local.getsockname()
        is_bound = isinstance(name, bytes) and bool(name)
        return Member(self.host, self.port, machine() if is_bound else "", name.hex() if is_bound else "")


def open_listeners(host: str, ports: range | None, *, listens: bool) -> Listeners:
    """Reserve a port of this host and, if ``listens``, listen on it.

    Args:
        host: The name or address by which the others know this host.
        ports: The ports to choose from; None for any.
        listens: Whether to listen now, on the address to which the other hosts connect. Otherwise the port is reserved
            for TensorFlow, which binds it on all interfaces.

    Raises:
        ClusterError: All of ``ports`` are taken.
    """
    remote = hold_port(ports, host if listens else None, listens=listens)
    local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if listens and sys.platform.startswith("linux"):
        local.bind("")  # an abstract name that the kernel chooses; it vanishes with the socket
        local.listen(_BACKLOG)
    return Listeners(remote, local, host)


def hold_port(ports: range | None = None, host: str | None = None, *, listens: bool = False) -> socket.socket:
    """Return a socket bound to a free port of this host, which reserves that port until it is closed.

    TensorFlow does not set SO_REUSEPORT, so a port that is meant for TensorFlow must be released just before TensorFlow
    binds it. Until then, this socket keeps other processes from taking it.

    Args:
        ports: The ports to choose from; None for any.
        host: The name or address to bind, if it belongs to this machine; None for all interfaces.
        listens: Whether to listen on the port.

    Raises:
        ClusterError: All of ``ports`` are taken.
    """
    address = "" if host is None else _address_of(host)
    if address:
        with contextlib.suppress(OSError):
            return _bound(address, ports, listens=listens)
    return _bound("", ports, listens=listens)


def _address_of(host: str) -> str:
    """Return the only address of a host; "" if it has several, or one that other hosts may be unable to reach."""
    host = host.strip("[]")
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host))
    try:
        found = {str(address[0]) for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except OSError:
        return ""
    # On many hosts, /etc/hosts maps the host's own name to a loopback address.
    others = [each for each in found if not ipaddress.ip_address(each.partition("%")[0]).is_loopback]
    return others[0] if len(others) == len(found) == 1 else ""


def _bound(address: str, ports: range | None, *, listens: bool) -> socket.socket:
    """Bind a port at an address of this machine or, if ``address`` is empty, at all its addresses.

    Raises:
        OSError: The address does not belong to this machine.
        ClusterError: All of ``ports`` are taken.
    """
    for port in ports or (0,):
        try:
            return _bound_once(address, port, listens=listens)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    assert ports is not None
    raise ClusterError(
        f"All ports from {ports.start} to {ports.stop - 1} are taken on {socket.gethostname()}. Widen "
        "tensorflow.spark.distributor.workerPorts: each worker on a host needs one port."
    )


def _bound_once(address: str, port: int, *, listens: bool) -> socket.socket:
    is_dual = not address and socket.has_dualstack_ipv6()
    sock = socket.socket(socket.AF_INET6 if is_dual or ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        if is_dual:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if listens:
            # Closed connections of an earlier group may block the port for a minute. Still, only one socket can listen.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        if listens:
            sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def machine() -> str:
    """Return a hash of what workers must share to share memory: kernel, network namespace and user; "" if unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        namespace = os.stat("/proc/self/ns/net").st_ino
    except OSError:
        return ""
    return hashlib.sha256(f"{boot} {namespace} {os.getuid()}".encode()).hexdigest()[:16]
