"""Creates hosts with limited bandwidth and a delay: network namespaces on a bridge (needs Linux, root and iproute2)."""

import contextlib
import ctypes
import os
import subprocess
import sys
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_PREFIX = "stfd-bench"


def _ip(*words):
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def limited_hosts(count, gbit, delay=0.0):
    """Create hosts and remove them; yields their names and addresses.

    Args:
        count: The number of hosts.
        gbit: The bandwidth of each host, in Gbit/s.
        delay: How long a frame takes from one host to another, in seconds.
    """
    switch = f"{_PREFIX}-switch"
    names = [f"{_PREFIX}-{number}" for number in range(count)]
    addresses = [f"10.79.0.{10 + number}" for number in range(count)]
    lines = []
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for number, (name, address) in enumerate(zip(names, addresses, strict=True)):
            _ip("netns", "add", name)
            port = f"h{number}"
            if delay:
                lines.append(_delay_line(name, switch, port, delay))
            else:
                _ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", port, "netns", switch)
            _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
            limit = f"rate {gbit}gbit burst 256kb latency 50ms".split()
            subprocess.run(["tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", "tbf", *limit], check=True)
        yield list(zip(names, addresses, strict=True))
    finally:
        for line in lines:
            line.kill()
            line.wait()
        for name in [*names, switch]:
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL)


def _delay_line(host, switch, port, delay):
    command = [sys.executable, str(Path(__file__).with_name("delay_line.py")), host, switch, port, str(delay)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if process.stdout.readline() != "ready\n":
        process.kill()
        process.wait()
        raise RuntimeError(f"The line of {host} did not start; see its output above.")
    return process


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
