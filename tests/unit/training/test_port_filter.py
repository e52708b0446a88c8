"""The filter on TensorFlow's port, on real sockets and with an interpreter of its program."""

import ctypes
import ipaddress
import socket
import struct
import subprocess
import sys
import time

import pytest

from helpers import wait_until
from spark_tensorflow_distributor.training import port_filter
from spark_tensorflow_distributor.training.port_filter import PortFilter, PortFilterError, attach, filter_program

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="filters need Linux")


def accepts(program, source):
    """Interpret a program for a packet from this address."""
    address = ipaddress.ip_address(source)
    if address.version == 4:
        header = b"\x45" + bytes(11) + address.packed + bytes(4)
    else:
        header = b"\x60" + bytes(7) + address.packed + bytes(16)
    value, place = 0, 0
    while True:
        code, if_true, if_false, operand = program[place]
        place += 1
        if code == 0x06:
            return operand != 0
        if code in (0x20, 0x30):
            size = 4 if code == 0x20 else 1
            start = operand - 0xFFF00000
            value = int.from_bytes(header[start : start + size], "big")
        elif code == 0x74:
            value >>= operand
        elif code == 0x54:
            value &= operand
        elif code == 0x05:
            place += operand
        elif code == 0x15:
            place += if_true if value == operand else if_false
        else:
            raise AssertionError(code)


def is_filtered(listener):
    """Return whether a socket has a filter: SO_GET_FILTER returns the number of its instructions."""
    length = ctypes.c_uint32(0)
    library = ctypes.CDLL(None, use_errno=True)
    assert library.getsockopt(listener.fileno(), socket.SOL_SOCKET, 26, None, ctypes.byref(length)) >= 0
    return length.value > 0


def addresses(*texts):
    return [ipaddress.ip_address(text) for text in texts]


MANY = [f"10.0.{n // 250}.{n % 250 + 1}" for n in range(600)] + [f"fd00::{n:x}" for n in range(1, 100)]


@pytest.mark.parametrize("members", [(), ("10.0.0.1",), ("fd00::1", "10.0.0.2"), ("::ffff:10.0.0.3",), MANY])
def test_members_and_this_machine_are_accepted_and_nobody_else(members):
    program = filter_program(addresses(*members))
    for member in [*members, "127.0.0.1", "127.9.9.9", "::1"]:
        address = ipaddress.ip_address(member)
        assert accepts(program, str(getattr(address, "ipv4_mapped", None) or address))
    for stranger in ("10.1.0.1", "0.0.0.0", "10.0.255.2", "fd00::", "fd00::1:0:1", "::", "fe80::1", "128.0.0.1"):
        assert not accepts(program, stranger)
    assert all(if_true < 256 and if_false < 256 for _, if_true, if_false, _ in program)


@linux
def test_the_kernel_accepts_the_program():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        attach(listener, filter_program(addresses(*MANY)))
        socket.create_connection(listener.getsockname(), 5).close()
        with pytest.raises(PortFilterError, match="instructions"):
            attach(listener, filter_program(addresses(*MANY)) * 5)


def drop_loopback(_):
    return [(0x06, 0, 0, 0)]


@linux
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_socket_is_found_and_filtered_as_soon_as_it_listens(family, monkeypatch):
    """Packets of this test come from this machine, which the real program accepts: this one drops all."""
    monkeypatch.setattr(port_filter, "filter_program", drop_loopback)
    warnings = []
    with socket.socket(family, socket.SOCK_STREAM) as listener, socket.create_server(("127.0.0.1", 0)) as other:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("", 0))
        port = listener.getsockname()[1]
        watcher = PortFilter(port, ["10.0.0.1"], warnings.append)
        watcher.start()
        time.sleep(0.05)
        assert not is_filtered(listener)
        listener.listen()
        assert wait_until(lambda: is_filtered(listener), 5)
        with pytest.raises(OSError, match="timed out"):
            socket.create_connection(("127.0.0.1", port), 0.3)
        socket.create_connection(other.getsockname(), 5).close()
    assert warnings == []


BUSY = """
import ctypes, os, socket, threading, time
from spark_tensorflow_distributor.training.port_filter import PortFilter
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
open_before = sorted(os.listdir("/proc/self/fd"))
warnings = []
PortFilter(port, ["10.0.0.1"], warnings.append).start()
# Listens and waits while it keeps Python's lock, as TensorFlow does.
library = ctypes.PyDLL(None)
listener = library.socket(socket.AF_INET, socket.SOCK_STREAM, 0)
address = socket.AF_INET.to_bytes(2, "little") + port.to_bytes(2, "big") + socket.inet_aton("127.0.0.1") + bytes(8)
assert library.bind(listener, address, 16) == library.listen(listener, 10) == 0
library.usleep(1_000_000)
length = ctypes.c_uint32(0)
assert library.getsockopt(listener, socket.SOL_SOCKET, 26, None, ctypes.byref(length)) >= 0
os.close(listener)
while threading.active_count() > 1:
    time.sleep(0.01)
print(length.value > 0, warnings, sorted(os.listdir("/proc/self/fd")) == open_before)
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print("no child is left")
"""


@linux
def test_a_socket_is_filtered_while_pythons_lock_is_held():
    done = subprocess.run([sys.executable, "-c", BUSY], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["True [] True", "no child is left"], done.stderr


@linux
def test_strangers_that_were_faster_than_the_filter_are_cut_off(monkeypatch):
    monkeypatch.setattr(PortFilter, "_is_of_the_group", lambda self, peer: peer != "127.0.0.2")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        connections = {}
        for source in ("127.0.0.1", "127.0.0.2"):
            connections[source] = socket.create_connection(("127.0.0.1", port), 5, (source, 0))
        accepted = [listener.accept()[0] for _ in connections]
        watcher = PortFilter(port, [], print)
        watcher.start()
        connections["127.0.0.2"].settimeout(5)
        assert connections["127.0.0.2"].recv(1) == b""
        connections["127.0.0.1"].settimeout(0.3)
        with pytest.raises(TimeoutError):
            connections["127.0.0.1"].recv(1)
        for sock in [*accepted, *connections.values()]:
            sock.close()


@linux
def test_a_port_that_cannot_be_filtered_is_reported(monkeypatch):
    monkeypatch.setattr(port_filter, "filter_program", lambda _: [(0xFFFF, 0, 0, 0)])
    warnings = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        watcher = PortFilter(listener.getsockname()[1], [], warnings.append)
        watcher.start()
        assert wait_until(lambda: warnings, 5)
    assert "is open to every host" in warnings[0]
    assert "firewall" in warnings[0]


def test_the_layout_of_the_kernels_structures():
    assert struct.calcsize("=HBBI") == 8
    assert struct.calcsize("HP") == 16
