"""The driver's channel: the socket to which the agents of one launch report.

Only holders of the launch's secret can use it. The event loop of a single thread serves all connections, so that only
the process's limit on open files bounds their number. It passes received messages to the thread that called ``run``,
and queues that thread's messages; neither ever waits for a peer.
"""

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Container
from functools import partial
from typing import Any

from ...resume.driver_store import DriverCheckpointStore
from ...transport.doorway import Doorway
from ...transport.handshake import DRIVER, Handshake, NotAuthenticError, SessionKeys
from ...transport.sealing import Protection
from ...transport.stream import SealedStream
from ..process_tools import allow_open_files
from ..specs import line_window
from ..wire import encode, line_size
from .addresses import family_of
from .events import Events
from .peers import Peer
from .transfers import KINDS, Transfers

_log = logging.getLogger(__name__)

_TICK_SECONDS = 0.25
_CLOSE_SECONDS = 6.0
# Number of connections, beyond one for each rank, that may be unauthenticated at the same time.
_STRANGERS = 128
# Allowance for the other open files of the driver's process.
_OTHER_FILES = 512
# In a group of hundreds, waking up for every single heartbeat costs more than reading it. Unless several events arrive
# together anyway, the loop therefore pauses for a moment between them.
_PEERS_PER_EVENT = 128
_PAUSE_SECONDS = 0.005
# A peer that has accepted no data for this long, although data waits for it, counts as not reading.
_BLOCKED_SECONDS = 5.0
# A peer for which more bytes than this are waiting is disconnected, and has to reconnect.
_MAX_WAITING = 64 << 20


class Channel:
    """Listens for agents until closed.

    Args:
        secret: The launch's secret.
        bind_address: The interface to listen on.
        advertised: Host names or addresses at which agents may reach it, best first.
        port: 0 for any free port.
        checkpoints: Keeps the checkpoints that agents send; None if the driver keeps none.
        world_size: Number of ranks.
        protection: See ``RunPlan``.

    Attributes:
        events: Queue of ``(rank, message)``. The channel adds messages of the types ``connected``, ``disconnected``,
            ``blocked``, ``unblocked``, ``broken``, ``result`` and ``committed`` to those of the agents.
        addresses: ``(host, port)`` pairs at which agents may reach it, best first.
    """

    def __init__(
        self,
        secret: bytes,
        bind_address: str,
        advertised: tuple[str, ...],
        port: int = 0,
        checkpoints: DriverCheckpointStore | None = None,
        *,
        world_size: int = 1024,
        protection: Protection = "integrity",
    ) -> None:
        allow_open_files(world_size + _STRANGERS + _OTHER_FILES)
        self._protection = protection
        self._room_step = line_window(world_size) // 4
        self._shown: dict[int, int] = {}  # by rank, characters shown but not yet reported to the agent
        self._peers: dict[int, Peer] = {}
        self._newcomers: dict[Peer, float] = {}  # authenticated, but have not sent a hello
        self._blocked: set[Peer] = set()
        self._orders: deque[tuple[int | None, bytes]] = deque()
        self._closing = False
        self._next_look = 0.0
        self.events = Events()
        self._transfers = Transfers(checkpoints, self.events.put)
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)
        self._listener = socket.create_server((bind_address, port), family=family_of(bind_address), backlog=4096)
        bound = self._listener.getsockname()[1]
        self.addresses = tuple((host, bound) for host in advertised)
        ranks: Container[int] = range(world_size)
        self._doorway = Doorway(
            self._listener,
            Handshake(secret, 0, DRIVER),
            self._selector,
            self._admit,
            expected=ranks,
            name="the driver's channel",
            limit=world_size + _STRANGERS,
        )
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._on_wake)
        self._thread = threading.Thread(target=self._run, daemon=True, name="spark-tensorflow-channel")
        self._thread.start()

    def send(self, rank: int | None, message: dict[str, Any]) -> None:
        """Queue a message for one rank, or for all (None). A rank without a connection does not get the message."""
        self._orders.append((rank, encode(message)))
        self._wake()

    def show(self, rank: int, message: dict[str, Any]) -> None:
        """Note that lines of output have been shown, so that the agent may send more of them."""
        shown = self._shown.get(rank, 0) + line_size(message["lines"])
        if shown >= self._room_step:
            self.send(rank, {"type": "shown", "size": shown})
            shown = 0
        self._shown[rank] = shown

    def close(self) -> None:
        """Close all connections and wait for the threads."""
        self._closing = True
        self._wake()
        self._thread.join(_CLOSE_SECONDS)
        self._transfers.close()
        for end in (self._wake_read, self._wake_write, self._listener):
            end.close()

    # Everything below runs in the channel's thread.

    def _run(self) -> None:
        try:
            while not self._closing:
                events = self._selector.select(_TICK_SECONDS)
                for key, mask in events:
                    key.data(mask)
                is_quiet = not self._newcomers and not len(self._doorway)
                if is_quiet and len(events) < len(self._peers) // _PEERS_PER_EVENT:
                    time.sleep(_PAUSE_SECONDS)
                now = time.monotonic()
                if now >= self._next_look:
                    self._next_look = now + _TICK_SECONDS
                    self._doorway.expire(now)
                    self._expire(now)
            self._flush_all()
        except Exception as error:  # a bug; the run must end instead of waiting for workers that it cannot hear
            _log.exception("The driver's channel has failed.")
            self.events.put((-1, {"type": "broken", "error": error}))
        finally:
            for peer in [*self._peers.values(), *self._newcomers]:
                peer.close()
            self._doorway.close()
            self._selector.close()
            self._listener.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # already awake, or closed
            self._wake_write.send(b".")

    def _on_wake(self, _: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_read.recv(1 << 16)
        self._take_orders()

    def _take_orders(self) -> None:
        while self._orders:
            rank, message = self._orders.popleft()
            targets = list(self._peers.values()) if rank is None else [self._peers.get(rank)]
            for peer in targets:
                if peer is not None:
                    self._guarded(peer, partial(peer.send, message))

    def _flush_all(self) -> None:
        self._take_orders()
        for peer in list(self._peers.values()):
            with contextlib.suppress(OSError):
                peer.outbox.flush()

    def _admit(self, sock: socket.socket, rank: int, keys: SessionKeys) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        peer = Peer(sock, rank, SealedStream(keys, self._protection), self._selector)
        peer.listen(partial(self._on_peer, peer))
        self._newcomers[peer] = time.monotonic() + _CLOSE_SECONDS

    def _on_peer(self, peer: Peer, mask: int) -> None:
        self._guarded(peer, partial(self._serve, peer, mask))

    def _guarded(self, peer: Peer, action: Callable[[], None]) -> None:
        """Perform an action on a peer. If the peer sends something invalid, only its own connection is closed."""
        try:
            action()
        except NotAuthenticError:
            _log.warning(
                "Something between the hosts has changed the messages of rank %d @ %s to the driver. The connection "
                "was closed; the worker opens a new one.", peer.rank, peer.host,
            )  # fmt: skip
            self._lose(peer)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            _log.debug("The connection of rank %d ended: %s", peer.rank, error)
            self._lose(peer)

    def _serve(self, peer: Peer, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            peer.flush()
        if not mask & selectors.EVENT_READ:
            return
        for message in peer.receive():
            if peer not in self._newcomers:
                _check(message)
                self.events.put((peer.rank, message))
            elif not self._welcome(peer, message):
                return

    def _welcome(self, peer: Peer, hello: dict[str, Any]) -> bool:
        """Handle the first message of a connection; return False if it is a transfer, which leaves the loop."""
        kind, rank = hello["type"], peer.rank
        del self._newcomers[peer]
        if kind in KINDS:
            self._transfers.serve(rank, peer.hand_over(), hello)
            return False
        peer.host = str(hello.get("host", "?"))
        if hello.get("tampered"):
            _log.warning(
                "Something between the hosts has sent messages to rank %d @ %s in the driver's name. The worker did "
                "not accept them.", rank, peer.host,
            )  # fmt: skip
        before = self._peers.pop(rank, None)
        if before is not None:
            self._forget(before)
            self.events.put((rank, {"type": "disconnected"}))
        self._peers[rank] = peer
        self._shown.pop(rank, None)
        self.events.put((rank, {**hello, "type": "connected"}))
        return True

    def _lose(self, peer: Peer) -> None:
        if peer.is_closed:
            return
        self._newcomers.pop(peer, None)
        if self._peers.get(peer.rank) is peer:
            del self._peers[peer.rank]
            self.events.put((peer.rank, {"type": "disconnected"}))
        self._forget(peer)  # last: the agent may now end, and the job's end must be the last event

    def _forget(self, peer: Peer) -> None:
        self._blocked.discard(peer)
        peer.close()

    def _expire(self, now: float) -> None:
        """Drop peers that send nothing after their handshake, and report peers that do not read."""
        for peer in [peer for peer, deadline in self._newcomers.items() if now > deadline]:
            self._lose(peer)
        for peer in list(self._peers.values()):
            since = peer.outbox.waiting_since
            if since is None:
                if peer in self._blocked:
                    self._blocked.discard(peer)
                    self.events.put((peer.rank, {"type": "unblocked"}))
                continue
            if peer.outbox.size > _MAX_WAITING:
                self._lose(peer)
            elif now - since > _BLOCKED_SECONDS and peer not in self._blocked:
                self._blocked.add(peer)
                self.events.put((peer.rank, {"type": "blocked", "seconds": now - since}))


def _check(message: dict[str, Any]) -> None:
    """Check the parts of a message that this module and the readers of its events rely on.

    Raises:
        KeyError, TypeError: The message is malformed.
    """
    kind = message["type"]
    if kind == "log":
        line_size(message["lines"])
    if kind in ("connected", "disconnected", "blocked", "unblocked", "broken", "result", "job_ended"):
        raise TypeError(f"{kind} is not a message of a worker")
