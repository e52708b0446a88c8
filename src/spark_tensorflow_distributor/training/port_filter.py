"""Lets only the group's own hosts connect to TensorFlow's port (Linux).

TensorFlow's server executes what anyone sends, and listens on all interfaces. It offers no hook for its sockets, but
they belong to this process: a filter on the listening socket makes the kernel drop packets from other addresses, so no
other host can connect. This needs no privileges.

TensorFlow opens the socket in a call that returns only once all workers have joined and that holds the GIL, so no other
Python thread of this process can run meanwhile. A child process that shares the open files attaches the filter instead.
"""

import contextlib
import ctypes
import gc
import ipaddress
import os
import platform
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from ..formatting import one_line
from .ports import own_port, sockets_on

_SO_ATTACH_FILTER = 26
# Polling slows down after the first minute: a program's own strategy may open the socket at any time, or never.
_SLOW_POLL_SECONDS = 0.05
_FAST_POLLING_SECONDS = 60.0
# The kernel's limit for the instructions of a program.
_MAX_INSTRUCTIONS = 4096
_POLL_SECONDS = 0.002
# The number of the clone system call, its flag to share open files, and waitpid's flag for children without a signal.
_CLONE = {"x86_64": 56, "aarch64": 220}.get(platform.machine())
_CLONE_FILES = 0x400
_WAIT_ALL = 0x40000000
_PR_SET_PDEATHSIG = 1
# How long to look for connections that were made before the filter was attached.
_SWEEP_SECONDS = 2.0

_THREAD_NAME = "spark-tensorflow-port-filter"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# Opcode, jump offsets if true and if false, and operand.
Instruction = tuple[int, int, int, int]

_LOAD_WORD, _LOAD_BYTE, _SHIFT_RIGHT, _AND, _RETURN, _JUMP, _JUMP_IF_EQUAL = 0x20, 0x30, 0x74, 0x54, 0x06, 0x05, 0x15
_NETWORK_HEADER = 0xFFF00000  # SKF_NET_OFF: offsets from here count from the IP header
_ACCEPT, _DROP = (_RETURN, 0, 0, 0xFFFFFFFF), (_RETURN, 0, 0, 0)


class PortFilterError(Exception):
    """The kernel does not accept the filter."""


def _unmapped(address: Address) -> Address:
    """Return the IPv4 address that an IPv4-mapped IPv6 address contains; any other address unchanged."""
    return getattr(address, "ipv4_mapped", None) or address


def filter_program(addresses: Iterable[Address]) -> list[Instruction]:
    """Return a classic BPF program that accepts packets from these addresses and from this machine. Pure."""
    v4, v6 = set(), {ipaddress.IPv6Address("::1")}
    for address in map(_unmapped, addresses):
        if isinstance(address, ipaddress.IPv4Address):
            v4.add(address)
        else:
            v6.add(address)
    four = [(_LOAD_WORD, 0, 0, _NETWORK_HEADER + 12)]
    for each in sorted(v4):
        four += [(_JUMP_IF_EQUAL, 0, 1, int(each)), _ACCEPT]
    four += [(_AND, 0, 0, 0xFF000000), (_JUMP_IF_EQUAL, 0, 1, 127 << 24), _ACCEPT, _DROP]
    six: list[Instruction] = []
    for long in sorted(v6):
        words = struct.unpack("!4I", long.packed)
        for index, word in enumerate(words):
            # If a word differs, jump past this address.
            six += [
                (_LOAD_WORD, 0, 0, _NETWORK_HEADER + 8 + 4 * index),
                (_JUMP_IF_EQUAL, 0, 2 * (3 - index) + 1, word),
            ]
        six.append(_ACCEPT)
    six.append(_DROP)
    # Conditional jumps reach only 255 instructions, so the head uses unconditional ones to the two sections.
    head = [
        (_LOAD_BYTE, 0, 0, _NETWORK_HEADER),
        (_SHIFT_RIGHT, 0, 0, 4),
        (_JUMP_IF_EQUAL, 1, 0, 4),
        (_JUMP_IF_EQUAL, 1, 2, 6),
        (_JUMP, 0, 0, 2 + len(six)),  # to IPv4
        (_JUMP, 0, 0, 1),  # to IPv6
        _DROP,
    ]
    return [*head, *six, *four]


def attach(listener: socket.socket, program: list[Instruction]) -> None:
    """Attach a program to a listening socket; connections that it accepts inherit it.

    Raises:
        PortFilterError: If the program is too long, or the kernel rejects it.
    """
    if len(program) > _MAX_INSTRUCTIONS:
        raise PortFilterError(f"{len(program)} instructions; the kernel's limit is {_MAX_INSTRUCTIONS}")
    code = b"".join(struct.pack("=HBBI", *each) for each in program)
    buffer = ctypes.create_string_buffer(code)
    try:
        option = struct.pack("HP", len(program), ctypes.addressof(buffer))
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, option)
    except OSError as error:
        raise PortFilterError(str(error)) from error


def filter_port(addresses: Sequence[str], warn: Callable[[str], None]) -> None:
    """Filter this worker's port from TF_CONFIG as soon as TensorFlow listens on it.

    Args:
        addresses: The addresses of the group's hosts; if empty, the port is left open.
        warn: See :class:`PortFilter`.
    """
    if addresses:
        PortFilter(own_port(), addresses, warn).start()


class PortFilter:
    """Filters the connections to a port as soon as this process listens on it.

    Args:
        port: The port.
        addresses: The addresses of the group's hosts.
        warn: Called with a message, on another thread, if the port remains open to all.
    """

    def __init__(self, port: int, addresses: Iterable[str], warn: Callable[[str], None]) -> None:
        self._port = port
        self._addresses = [_unmapped(ipaddress.ip_address(each)) for each in addresses]
        self._warn = warn
        self._result, self._report = -1, -1

    def start(self) -> None:
        """Begin to watch for the listening socket; call this before this process starts other Python threads."""
        # A fork copies locks that other threads hold, and nothing would release them in the child.
        if _CLONE is None or threading.active_count() > 1:
            threading.Thread(target=self._run, args=(self._finish,), daemon=True, name=_THREAD_NAME).start()
            return
        self._result, self._report = os.pipe()
        parent = os.getpid()
        library = ctypes.PyDLL(None, use_errno=True)  # does not release the GIL, so the child holds it
        # A child without an exit signal is invisible to the program's own calls of wait.
        child = library.syscall(_CLONE, _CLONE_FILES, 0, 0, 0, 0)
        if child == 0:
            self._become_child(library, parent)
        if child < 0:
            self._finish(f"no process could be started: {os.strerror(ctypes.get_errno())}")
            return
        threading.Thread(target=self._await, args=(child,), daemon=True, name=_THREAD_NAME).start()

    def _become_child(self, library: ctypes.PyDLL, parent: int) -> NoReturn:
        """Watch for the socket in the child.

        Both processes share their open files, so finalising an object of the parent here would close the parent's file.
        Therefore garbage collection is off, and this function does not return.
        """
        try:
            gc.disable()
            library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() == parent:
                self._run(lambda problem: os.write(self._report, problem.encode()[:4000]))
        finally:
            os._exit(0)

    def _await(self, child: int) -> None:
        _, status = os.waitpid(child, _WAIT_ALL)
        os.close(self._report)
        with os.fdopen(self._result, errors="replace") as file:
            problem = file.read()
        self._finish(problem or ("the process that filters it was killed" if status else ""))

    def _finish(self, problem: str) -> None:
        if problem:
            self._warn(
                f"TensorFlow's port {self._port} is open to every host that can reach it, because it could not be "
                f"filtered ({problem}). Restrict it with a firewall; see docs/security.md."
            )

    def _run(self, finish: Callable[[str], object]) -> None:
        try:
            self._watch(filter_program(self._addresses))
        except Exception as error:  # report anything: nobody would see a traceback of this process
            finish(one_line(error))
        else:
            finish("")

    def _watch(self, program: list[Instruction]) -> None:
        fast_until = time.monotonic() + _FAST_POLLING_SECONDS
        is_found = False
        while not is_found:
            for listener in sockets_on(self._port, listening=True):
                with listener:
                    attach(listener, program)
                is_found = True
            time.sleep(_POLL_SECONDS if time.monotonic() < fast_until else _SLOW_POLL_SECONDS)
        self._sweep()

    def _sweep(self) -> None:
        """Close connections from other hosts that were made before the filter was attached."""
        end = time.monotonic() + _SWEEP_SECONDS
        while time.monotonic() < end:
            for connection in sockets_on(self._port, listening=False):
                with connection, contextlib.suppress(OSError):
                    if not self._is_of_the_group(connection.getpeername()[0]):
                        connection.shutdown(socket.SHUT_RDWR)
            time.sleep(0.1)

    def _is_of_the_group(self, peer: str) -> bool:
        address = _unmapped(ipaddress.ip_address(peer.partition("%")[0]))
        return address.is_loopback or address in self._addresses
