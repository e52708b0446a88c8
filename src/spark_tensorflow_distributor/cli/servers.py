"""Checks that a master or a server of Spark Connect answers, before Spark tries for a minute or longer."""

import os
import socket
from collections.abc import Mapping

from ..errors import ClusterError

_CONNECT_PORT = 15002
_TIMEOUT = 5.0
# Through a proxy, a client of Spark Connect may reach a server that this machine cannot reach directly.
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")


def check_answers(url: str | None, environment: Mapping[str, str] = os.environ) -> None:
    """Connect to the hosts that a URL names, and disconnect at once.

    Args:
        url: ``spark://host:port,host:port``, or ``sc://host:port/;parameters``. Others are not checked.
        environment: Environment variables of this process.

    Raises:
        ClusterError: None of the hosts accepts a connection.
    """
    hosts = _hosts(url or "")
    is_master = (url or "").startswith("spark://")
    if not is_master and any(environment.get(name) or environment.get(name.upper()) for name in _PROXIES):
        return
    reasons = []
    for host, port in hosts:
        try:
            socket.create_connection((host, port), _TIMEOUT).close()
            return
        except OSError as error:
            reasons.append(f"{host} port {port}: {error.strerror or error}")
    if reasons:
        raise ClusterError(_text(url or "", is_master, reasons))


def _hosts(url: str) -> list[tuple[str, int]]:
    """Return the hosts and ports; none if Spark itself has to complain about the URL."""
    scheme, _, rest = url.partition("://")
    if scheme not in ("spark", "sc"):
        return []
    found = []
    for each in rest.partition("/")[0].split(","):
        host, colon, port = each.rpartition(":")
        if scheme == "sc" and (not colon or each.endswith("]")):  # an IPv6 address has colons, too
            host, port = each, str(_CONNECT_PORT)
        if not host or not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
            return []
        found.append((host.strip("[]"), int(port)))
    return found


def _text(url: str, is_master: bool, reasons: list[str]) -> str:
    found = "; ".join(reasons)
    scheme, separator, rest = url.partition("://")
    url = scheme + separator + rest.partition("/")[0]  # the parameters may contain a token
    if not is_master:
        return (
            f"No Spark Connect server answers at {url} ({found}). Check that the server runs, that --remote (or "
            f"SPARK_REMOTE) has its host and port (default: {_CONNECT_PORT}), and that no firewall blocks the "
            "connection."
        )
    return (
        f"No Spark master answers at {url} ({found}). Check that the master runs, that --master is the URL on its web "
        "page (usually at port 8080), and that no firewall blocks the connection from this machine."
    )
