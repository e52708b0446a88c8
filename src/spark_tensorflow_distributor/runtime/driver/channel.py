"""The driver's channel: the socket to which the agents of one launch report.

Only holders of the launch's secret can use it. One thread per connection puts what it reads into a single queue, which
the thread that called ``run`` empties. Log lines that arrive faster than that thread prints them are dropped and
counted, so that a slow terminal costs neither the driver memory nor the workers time.
"""

import contextlib
import logging
import queue
import socket
import threading
from typing import Any

from ...resume.driver_store import DriverCheckpointStore
from ..wire import HANDSHAKE_SECONDS, frame, prove_to_agent, receive, receive_bytes

_log = logging.getLogger(__name__)

# Time limit for each piece of a checkpoint.
_TRANSFER_SECONDS = 30.0

# Most frames of log lines (each up to 64 KiB) that may wait to be printed.
_WAITING_LOGS = 500


class Channel:
    """Listens until closed.

    Args:
        secret: Key of the launch.
        bind_address: The interface to listen on.
        advertised: Host names or addresses at which agents may reach it, best first.
        port: 0 for any free port.
        checkpoints: Keeps the checkpoints that agents send; None if the driver keeps none.

    Attributes:
        events: ``(rank, message)`` in the order of arrival, with ``connected`` and ``disconnected`` as messages.
        dropped_lines: Number of log lines that were dropped.
    """

    def __init__(
        self,
        secret: bytes,
        bind_address: str,
        advertised: tuple[str, ...],
        port: int = 0,
        checkpoints: DriverCheckpointStore | None = None,
    ) -> None:
        self._secret = secret
        self._checkpoints = checkpoints
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._connections: dict[int, socket.socket] = {}
        self._threads: list[threading.Thread] = []
        self._closed = False
        self.events: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
        self.dropped_lines = 0
        family = socket.AF_INET6 if ":" in bind_address else socket.AF_INET
        self._listener = socket.create_server((bind_address, port), family=family, backlog=1024)
        bound = self._listener.getsockname()[1]
        self.addresses = tuple((host, bound) for host in advertised)
        self._start_thread(self._accept)

    def send(self, rank: int | None, message: dict[str, Any]) -> None:
        """Send to one rank, or to all (None). If the connection is lost, the agent opens a new one."""
        data = frame(message)
        with self._lock:
            targets = list(self._connections.values()) if rank is None else [self._connections.get(rank)]
        for connection in targets:
            if connection is not None:
                with contextlib.suppress(OSError):  # its reader notices, too
                    connection.sendall(data)

    def close(self) -> None:
        """Close all connections and wait for the threads."""
        with self._lock:
            self._closed = True
            connections = list(self._open)
        # Shut down first: close alone does not wake a thread that is blocked in accept or recv.
        for sock in (self._listener, *connections):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(HANDSHAKE_SECONDS + 1)

    def _start_thread(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True, name="spark-tensorflow-channel")
        thread.start()
        self._threads = [each for each in self._threads if each.is_alive()] + [thread]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed
                return
            self._start_thread(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        rank = -1
        with self._lock:
            self._open.add(connection)
        try:
            connection.settimeout(HANDSHAKE_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if not prove_to_agent(connection, self._secret):
                _log.warning("Rejected a connection to the driver's channel: the peer does not hold the secret.")
                return
            connection.settimeout(HANDSHAKE_SECONDS)
            hello = receive(connection)
            if hello["type"] in ("commit", "fetch"):
                self._serve_checkpoints(connection, hello)
                return
            connection.settimeout(None)
            if not self._enter(int(hello["rank"]), connection):
                return
            rank = int(hello["rank"])
            self.events.put((rank, {**hello, "type": "connected"}))
            while True:
                message = receive(connection)
                if message["type"] == "result":
                    message["chunks"] = list(receive_bytes(connection, int(message["size"])))
                    connection.sendall(frame({"type": "result_taken"}))
                self._put(rank, message)
        except (OSError, EOFError, ValueError, KeyError) as error:
            if rank < 0 and not self._closed:
                _log.debug("A connection to the driver's channel ended during its handshake: %s", error)
        finally:
            with self._lock:
                self._open.discard(connection)
                current = self._connections.get(rank) is connection
                if current:
                    del self._connections[rank]
            connection.close()
            if current:
                self.events.put((rank, {"type": "disconnected"}))

    def _serve_checkpoints(self, connection: socket.socket, hello: dict[str, Any]) -> None:
        """Receive one checkpoint, or send those that the rank needs."""
        checkpoints = self._checkpoints
        if checkpoints is None:
            return
        connection.settimeout(_TRANSFER_SECONDS)
        if hello["type"] == "fetch":
            kept = [(name, file, file.seek(0, 2)) for name, file in checkpoints.for_rank(int(hello["rank"]))]
            connection.sendall(frame({"commits": [[name, size] for name, _, size in kept]}))
            for _, file, size in kept:
                if size:
                    connection.sendfile(file, 0, size)
            return
        name, size = str(hello["name"]), int(hello["size"])
        try:
            checkpoints.put(name, receive_bytes(connection, size))
        except OSError as error:
            connection.sendall(frame({"type": "commit_refused", "reason": f"at the driver: {error}"}))
            raise
        connection.sendall(frame({"type": "commit_taken"}))
        self.events.put((int(hello["rank"]), {"type": "committed", "name": name, "bytes": size}))

    def _enter(self, rank: int, connection: socket.socket) -> bool:
        with self._lock:
            if not self._closed:
                self._connections[rank] = connection
            return not self._closed

    def _put(self, rank: int, message: dict[str, Any]) -> None:
        if message["type"] == "log" and self.events.qsize() > _WAITING_LOGS:
            self.dropped_lines += len(message["lines"])
            return
        self.events.put((rank, message))
