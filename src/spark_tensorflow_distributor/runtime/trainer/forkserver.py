"""The fork server: forks trainers from a process that has already imported TensorFlow.

Importing TensorFlow takes seconds; forking a process that has imported it takes milliseconds, and the forks share its
memory. One server serves all Spark tasks of an executor, so a host imports TensorFlow once rather than once per slot,
and a second run does not import it at all. ``multiprocessing`` has a fork server for the same reason.

This is safe because the server only imports: it never creates an eager context, a device or a thread. It also checks
whether the import has left anything behind that does not survive a fork. If so, it restarts itself without the import,
and every trainer imports TensorFlow itself. A cold start is the same program with ``preload=[]``.

The server ends with the process that it watches (Spark's Python daemon) or after some idle time. A trainer ends with
the connection of the agent that requested it, or with the server.
"""

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from ...training.fork_safety import has_eager_context
from ..process_tools import BOOT, die_with_parent, is_alive, kill_group, paused_garbage_collection, peer_uid
from ..specs import TrainerSpec
from ..wire import Message, frame, from_json, receive

# The descriptors that come with a launch, in this order. Those of the worker's checkpoints follow.
FD_NAMES = ("stdout", "stderr", "control", "payload", "result", "port", "local", "stacks")
_MAX_FILES = 200
_POLL_SECONDS = 0.5


def main(boot: dict[str, Any]) -> None:
    """Serve until the watched process ends, or no agent has connected for ``idle_seconds``.

    Args:
        boot: ``listen_fd`` (of a shared server) or ``connection_fd`` (of a private one), ``watch`` (pid and start time
            of the watched process), ``preload`` (modules to import), ``idle_seconds``, ``stderr_fd`` (the executor's).
    """
    os.environ.pop("PYTHONHASHSEED", None)  # Spark sets it for its own shuffles
    if boot["preload"]:
        _preload(boot["preload"])
        reason = _unsafe_to_fork()
        if reason:
            _show_output(boot)
            print(f"No warm start: after importing TensorFlow, {reason}.", file=sys.stderr, flush=True)
            _restart({**boot, "preload": []})
        gc.freeze()  # otherwise a collection in a trainer would write to, and thereby copy, every shared page
    _show_output(boot)
    Server(boot).serve()


def _show_output(boot: dict[str, Any]) -> None:
    """Print to the executor's stderr from now on, as Spark's Python worker does.

    Until then, output goes to a file that the agent shows if this process dies: TensorFlow prints lines about the
    processor and the libraries that it finds whenever it is imported.
    """
    stderr = boot.pop("stderr_fd", None)
    if stderr is None:
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for target in (1, 2):
        os.dup2(stderr, target)
    os.close(stderr)
    # The old objects assume that they write to a seekable file.
    sys.stdout, sys.stderr = (open(target, "w", buffering=1, closefd=False) for target in (1, 2))  # noqa: SIM115


def _preload(modules: Sequence[str]) -> None:
    with paused_garbage_collection():
        for name in modules:
            try:
                importlib.import_module(name)
            except Exception:
                # A trainer that needs the module will fail in the same way, and can report it.
                return


def _unsafe_to_fork() -> str:
    """Return why it is unsafe to fork this process; "" if it is safe."""
    if threading.active_count() > 1:
        return f"{threading.active_count() - 1} Python threads are running"
    if has_eager_context():
        return "an eager context exists"
    with contextlib.suppress(OSError):  # no /proc
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the descriptor of the listing itself has been closed
                if os.readlink(f"/proc/self/fd/{fd}").startswith("/dev/nvidia"):
                    return "a GPU is open"
    return ""


def _restart(boot: dict[str, Any]) -> NoReturn:
    """Replace this process with a new server."""
    with tempfile.TemporaryFile("w+") as file:
        json.dump(boot, file)
        file.seek(0)
        os.dup2(file.fileno(), 0)
    for name in ("listen_fd", "connection_fd"):
        if boot.get(name) is not None:
            os.set_inheritable(boot[name], True)
    os.execv(sys.executable, [sys.executable, "-c", BOOT])


class Server:
    """Accepts connections from agents, and forks their trainers."""

    def __init__(self, boot: dict[str, Any]) -> None:
        self._watch_pid, self._watch_start = boot["watch"]
        self._idle_seconds = float(boot["idle_seconds"])
        self._warm = bool(boot["preload"])
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._trainers: dict[int, socket.socket] = {}  # their agents' connections, by pid
        self._connections: dict[socket.socket, int | None] = {}  # the pid of each connection's trainer
        self._last_use = time.monotonic()
        if boot.get("listen_fd") is not None:
            self._listener = socket.socket(fileno=boot["listen_fd"])
            self._listener.setblocking(False)
            self._selector.register(self._listener, selectors.EVENT_READ)
        else:
            self._add(socket.socket(fileno=boot["connection_fd"]))
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)

    def serve(self) -> None:
        try:
            while self._is_needed():
                for key, _ in self._selector.select(_POLL_SECONDS):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj is self._wake_read:
                        with contextlib.suppress(BlockingIOError):
                            self._wake_read.recv(4096)
                    else:
                        self._serve_connection(key.fileobj)  # type: ignore[arg-type]
                self._reap()
        finally:
            for pid in self._trainers:
                kill_group(pid)

    def _is_needed(self) -> bool:
        if not is_alive(self._watch_pid, self._watch_start):
            return False
        if self._connections:
            self._last_use = time.monotonic()
            return True
        if self._listener is None:
            return False
        if time.monotonic() - self._last_use < self._idle_seconds:
            return True
        self._accept()  # an agent may have connected at the last moment
        if not self._connections:
            self._listener.close()  # the next agent starts a new server, even while this one is shutting down
        return bool(self._connections)

    def _accept(self) -> None:
        if self._listener is None:
            return
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        if peer_uid(connection) == os.getuid():
            self._add(connection)
        else:
            connection.close()

    def _add(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        self._connections[connection] = None
        self._selector.register(connection, selectors.EVENT_READ)
        self._send(connection, {"type": "ready", "pid": os.getpid(), "warm": self._warm})

    def _serve_connection(self, connection: socket.socket) -> None:
        try:
            mark, fds, _, _ = socket.recv_fds(connection, 1, _MAX_FILES)
            if not mark:
                raise EOFError
            spec = from_json(TrainerSpec, receive(connection))
            named = dict(zip((*FD_NAMES, *spec.checkpoint_names), fds, strict=True))
        except (OSError, EOFError, ValueError, TypeError):
            self._drop(connection)
            return
        try:
            pid = os.fork()
        except OSError as error:  # out of memory or processes
            self._send(connection, {"type": "exited", "error": f"the trainer could not be started: {error}"})
            pid = -1
        if pid == 0:
            self._become_trainer(spec, named)
        for fd in fds:
            os.close(fd)
        if pid > 0:
            self._trainers[pid] = connection
            self._connections[connection] = pid
            self._send(connection, {"type": "started", "pid": pid})

    def _become_trainer(self, spec: TrainerSpec, fds: dict[str, int]) -> NoReturn:
        """Run the trainer in the forked child."""
        status = 1
        try:
            parent = os.getppid()
            os.setsid()
            die_with_parent(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._selector.close()
            for sock in (self._listener, self._wake_read, self._wake_write, *self._connections):
                if sock is not None:
                    sock.close()
            from .main import run_trainer

            status = run_trainer(spec, fds)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _reap(self) -> None:
        for pid in list(self._trainers):
            try:
                done, status, usage = os.wait4(pid, os.WNOHANG)
            except ChildProcessError:
                done, status, usage = pid, 0, None
            if done == 0:
                continue
            connection = self._trainers.pop(pid)
            kill_group(pid)  # processes that the function left running
            unit = 1 if sys.platform == "darwin" else 1024
            peak_rss = usage.ru_maxrss * unit if usage else 0
            code = os.waitstatus_to_exitcode(status)
            self._send(connection, {"type": "exited", "code": code, "peak_rss": peak_rss})
            if connection not in self._connections:
                connection.close()

    def _drop(self, connection: socket.socket) -> None:
        """Kill the trainer of an agent that has disconnected or requested this; the agent then receives its exit."""
        pid = self._connections.pop(connection, None)
        self._selector.unregister(connection)
        if pid is not None and pid in self._trainers:
            kill_group(pid)
        else:
            connection.close()

    @staticmethod
    def _send(connection: socket.socket, message: Message) -> None:
        with contextlib.suppress(OSError):  # if the agent is gone, its connection will end
            connection.sendall(frame(message))
