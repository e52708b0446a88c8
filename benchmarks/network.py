"""Creates hosts with limited bandwidth: network namespaces on a bridge (needs Linux, root and iproute2)."""

import contextlib
import ctypes
import os
import subprocess

_CLONE_NEWNET = 0x40000000
_PREFIX = "stfd-bench"


def _ip(*words):
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def limited_hosts(count, gbit):
    """Create hosts that send at most ``gbit`` Gbit/s each, and remove them; yields their names and addresses."""
    switch = f"{_PREFIX}-switch"
    names = [f"{_PREFIX}-{number}" for number in range(count)]
    addresses = [f"10.79.0.{10 + number}" for number in range(count)]
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for number, (name, address) in enumerate(zip(names, addresses, strict=True)):
            _ip("netns", "add", name)
            port = f"h{number}"
            _ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", port, "netns", switch)
            _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
            limit = f"rate {gbit}gbit burst 256kb latency 50ms".split()
            subprocess.run(["tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", "tbf", *limit], check=True)
        yield list(zip(names, addresses, strict=True))
    finally:
        for name in [*names, switch]:
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def inside(name):
    """Within this context, create sockets on a host; ``""`` is this machine."""
    if not name:
        yield
        return
    library = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/net") as own, open(f"/run/netns/{name}") as other:
        _enter(library, other)
        try:
            yield
        finally:
            _enter(library, own)


def _enter(library, namespace):
    if library.setns(namespace.fileno(), _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
