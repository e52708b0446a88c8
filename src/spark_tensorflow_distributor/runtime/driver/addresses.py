"""Finds addresses at which the driver and the workers can reach each other."""

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any


def executors_reach(spark: Any, addresses: Sequence[tuple[str, int]]) -> bool:
    """Return whether a process on an executor can connect to one of the addresses.

    The result is also False if no slot becomes free for this within ten seconds: the run itself may hold them all.
    """
    reached: list[bool] = []

    def look(batches: Iterator[Any]) -> Iterator[Any]:
        import socket

        for batch in batches:
            for address in addresses:
                try:
                    socket.create_connection(address, timeout=3).close()
                except OSError:
                    continue
                yield batch

    def ask() -> None:
        frame = spark.range(0, 1, 1, 1)
        with contextlib.suppress(Exception):  # cancelled, or the session is gone
            reached.append(len(frame.mapInArrow(look, frame.schema).collect()) > 0)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(10.0)
    return bool(reached and reached[0])


def connect_host(spark: Any) -> str:
    """Return the host of the server of a Spark Connect session."""
    return str(getattr(getattr(spark, "client", None), "host", None) or "localhost")


def address_towards(host: str) -> str:
    """Return this machine's own address on the route to ``host``. No packet is sent."""
    with contextlib.suppress(OSError):
        found = socket.getaddrinfo(host.strip("[]"), 9, type=socket.SOCK_DGRAM)
        for family, _, _, _, address in sorted(found, key=lambda each: each[0] != socket.AF_INET):
            with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
    return "127.0.0.1"


def family_of(address: str) -> socket.AddressFamily:
    """Return the family of a socket that listens at a name or address: IPv4 if it has an IPv4 address, else IPv6.

    Raises:
        OSError: The name is unknown.
    """
    families = {family for family, *_ in socket.getaddrinfo(address or None, 0, type=socket.SOCK_STREAM)}
    return socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
