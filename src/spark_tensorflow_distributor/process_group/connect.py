"""Connects the members of a group to each other."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import selectors
import socket
import tempfile
import time
from collections.abc import Sequence
from typing import BinaryIO

from ..errors import RendezvousError, RendezvousTimeoutError
from ..formatting import one_line
from ..transport.doorway import Doorway
from ..transport.handshake import Handshake, NotAuthenticError, SessionKeys
from ..transport.sealing import NoSealer, Sealer, make_sealers
from .connection import Connection
from .local import BLOCK_BYTES, MULTI_MACHINE_BLOCK_BYTES, LocalGroup, memory_bytes
from .remote import RemoteGroup
from .spec import GroupSpec, Member

# Maximum number of unauthenticated connections; beyond it, the oldest one is closed.
_MAX_STRANGERS = 64
_RETRY_SECONDS = 0.05
_TICK_SECONDS = 0.1
# Time limit for one attempt to connect, since a name may have several addresses.
_ATTEMPT_SECONDS = 10.0


def connect(
    spec: GroupSpec, remote_listener: socket.socket | None, local_listener: socket.socket | None, seconds: float
) -> tuple[LocalGroup, RemoteGroup | None]:
    """Connect to the other members; return this machine's group and, on the machine's leader, the group of leaders.

    Members connect to members with lower ranks. The listeners are closed at the end, so that nobody can connect to a
    group that has formed.

    Args:
        spec: The group.
        remote_listener: Listens at the member's host and port.
        local_listener: Listens at the member's local name; None if the member has none.
        seconds: Time limit.

    Raises:
        RendezvousTimeoutError: If some members did not connect in time.
        RendezvousError: If a member ends before the group has formed, or a process in its place does not hold the
            secret.
    """
    with contextlib.ExitStack() as listeners:
        for each in (remote_listener, local_listener):
            if each is not None:
                listeners.enter_context(each)
        return _Formation(spec, time.monotonic() + seconds, seconds).form(remote_listener, local_listener)


class _Formation:
    """One member's part in forming a group."""

    def __init__(self, spec: GroupSpec, deadline: float, seconds: float) -> None:
        self._spec, self._topology = spec, spec.topology
        self._deadline, self._seconds = deadline, seconds
        self._handshake = Handshake(bytes.fromhex(spec.secret), spec.generation, spec.rank)
        self._sockets: dict[int, socket.socket] = {}
        self._keys: dict[int, SessionKeys] = {}

    def form(
        self, remote_listener: socket.socket | None, local_listener: socket.socket | None
    ) -> tuple[LocalGroup, RemoteGroup | None]:
        rank, topology = self._spec.rank, self._topology
        local, remote = topology.local_peers(rank), topology.remote_peers(rank)
        try:
            for peer in sorted(each for each in local | remote if each < rank):
                self._sockets[peer] = self._connect(peer, is_local=peer in local)
            self._accept({each for each in local if each > rank}, local_listener)
            self._accept({each for each in remote if each > rank}, remote_listener)
            return self._groups(self._share_memory())
        except BaseException:
            for sock in self._sockets.values():
                sock.close()
            raise

    def _groups(self, memory: mmap.mmap) -> tuple[LocalGroup, RemoteGroup | None]:
        rank, topology = self._spec.rank, self._topology
        connections = {peer: Connection(sock, peer, self._sealers(peer)) for peer, sock in self._sockets.items()}
        group, leaders = topology.group_of(rank), topology.leaders
        local = {group.index(peer): connections[peer] for peer in topology.local_peers(rank)}
        local_group = LocalGroup(group.index(rank), len(group), local, memory, self._block_bytes)
        if rank not in leaders:
            return local_group, None
        remote = {leaders.index(peer): connections[peer] for peer in topology.remote_peers(rank)}
        return local_group, RemoteGroup(leaders.index(rank), len(leaders), remote)

    def _sealers(self, peer: int) -> tuple[Sealer, Sealer]:
        if self._sockets[peer].family == socket.AF_UNIX:  # the data does not leave the machine
            return NoSealer(), NoSealer()
        return make_sealers(self._keys[peer], self._spec.protection)

    @property
    def _block_bytes(self) -> int:
        return BLOCK_BYTES if len(self._topology.leaders) == 1 else MULTI_MACHINE_BLOCK_BYTES

    def _connect(self, peer: int, *, is_local: bool) -> socket.socket:
        """Connect to a member that is listening or will listen soon."""
        member = self._spec.members[peer]
        while True:
            try:
                return self._connect_once(peer, member, is_local=is_local)
            except (OSError, EOFError) as error:
                if time.monotonic() + _RETRY_SECONDS > self._deadline:
                    raise self._timeout([peer], error) from error
                time.sleep(_RETRY_SECONDS)

    def _connect_once(self, peer: int, member: Member, *, is_local: bool) -> socket.socket:
        deadline = min(self._deadline, time.monotonic() + _ATTEMPT_SECONDS)
        left = max(deadline - time.monotonic(), 0.001)
        if is_local:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            sock = socket.create_connection((member.host.strip("[]"), member.port), timeout=left)
        try:
            sock.settimeout(left)
            if is_local:
                sock.connect(bytes.fromhex(member.local_name))
            self._keys[peer] = self._handshake.connect(sock, peer, deadline, self._deadline)
        except NotAuthenticError:
            sock.close()
            raise RendezvousError(
                f"The process that listens for rank {peer} at {member.host}:{member.port} does not hold this "
                "group's secret."
            ) from None
        except BaseException:
            sock.close()
            raise
        return sock

    def _accept(self, expected: set[int], listener: socket.socket | None) -> None:
        """Accept connections from the expected members, and drop all others."""
        if not expected:
            return
        assert listener is not None
        with selectors.DefaultSelector() as selector:
            name = f"rank {self._spec.rank}'s listener"
            doorway = Doorway(
                listener, self._handshake, selector, self._admit, expected=expected, name=name, limit=_MAX_STRANGERS
            )
            try:
                while missing := expected - self._sockets.keys():
                    now = time.monotonic()
                    if now > self._deadline:
                        raise self._timeout(sorted(missing))
                    doorway.expire(now)
                    for key, mask in selector.select(min(_TICK_SECONDS, self._deadline - now + 0.001)):
                        key.data(mask)
            finally:
                doorway.close()

    def _admit(self, sock: socket.socket, rank: int, keys: SessionKeys) -> None:
        if rank in self._sockets:  # the member did not receive the proof and connected again
            self._sockets[rank].close()
        sock.setblocking(True)
        self._sockets[rank], self._keys[rank] = sock, keys

    def _share_memory(self) -> mmap.mmap:
        """Map the memory that this machine's leader creates for the members on the machine."""
        group = self._topology.group_of(self._spec.rank)
        size = memory_bytes(len(group), self._block_bytes)
        if len(group) == 1:
            return mmap.mmap(-1, size)  # takes no memory until it is used
        if self._spec.rank == group[0]:
            with _memory_file() as file:
                os.ftruncate(file.fileno(), size)
                for peer in group[1:]:
                    try:
                        socket.send_fds(self._sockets[peer], [b"M"], [file.fileno()])
                    except OSError as error:
                        raise self._lost(peer) from error
                return mmap.mmap(file.fileno(), size)
        return self._receive_memory(group[0], size)

    def _receive_memory(self, leader: int, size: int) -> mmap.mmap:
        sock = self._sockets[leader]
        sock.settimeout(max(self._deadline - time.monotonic(), 0.001))
        try:
            mark, descriptors, _, _ = socket.recv_fds(sock, 1, 1)
        except TimeoutError as error:
            raise self._timeout([leader], error) from error
        except OSError as error:
            raise self._lost(leader) from error
        if not descriptors:
            raise self._lost(leader) if not mark else OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        try:
            return mmap.mmap(descriptors[0], size)
        finally:
            os.close(descriptors[0])

    def _lost(self, peer: int) -> RendezvousError:
        return RendezvousError(f"Rank {peer} ended while the workers were connecting to each other.")

    def _timeout(self, missing: Sequence[int], cause: Exception | None = None) -> RendezvousTimeoutError:
        members = self._spec.members
        names = ", ".join(f"rank {rank} ({members[rank].host}:{members[rank].port})" for rank in missing)
        reason = "" if cause is None else f": {one_line(cause)}"
        return RendezvousTimeoutError(
            f"Rank {self._spec.rank} could not connect to {names} within {self._seconds:.0f} s (start_timeout)"
            f"{reason}. Workers on different hosts must reach each other on these ports: open them "
            "(tensorflow.spark.distributor.workerPorts chooses the range) or use a network that the hosts share."
        )


def _memory_file() -> BinaryIO:
    """Return a file in memory that no other process can open by name."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("process_group"), "w+b")
    # This Python was built without memfd_create.
    return tempfile.TemporaryFile(dir="/dev/shm")
