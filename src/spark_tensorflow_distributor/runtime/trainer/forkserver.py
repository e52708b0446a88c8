"""A small server that forks trainers from a process in which TensorFlow is already imported.

Importing TensorFlow takes seconds, forking a process that has imported it takes milliseconds, and the memory of the
image is shared. One such server serves all Spark tasks of an executor, so a host imports TensorFlow once and not
once a slot, and a second run does not import it at all. The idea is that of ``multiprocessing``'s fork server.

What makes it safe is that the server only imports. It never creates an eager context, a device or a thread of its
own, and looks whether the import left anything behind that does not survive a fork; if so, it starts itself anew
without the import, and every trainer imports TensorFlow itself. A cold start (``preload=[]``) is the same program.

The server ends with the process it watches (Spark's Python daemon), or after some idle time; a trainer ends with the
connection of the agent that asked for it, or with the server.
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
from typing import Any

from ...training.fork_safety import has_eager_context
from ..process_tools import BOOT, die_with_parent, is_alive, kill_group, peer_uid
from ..specs import TrainerSpec
from ..wire import frame, from_json, receive

# The descriptors that travel with a launch, in this order.
FD_NAMES = ("stdout", "stderr", "control", "payload", "result", "port", "stacks")
# Behind them the checkpoints that this worker may begin with.
_MOST_FILES = 200
_POLL_SECONDS = 0.5


class _Trainer:
    """A forked trainer and the connection of its agent."""

    def __init__(self, pid: int, connection: socket.socket) -> None:
        self.pid = pid
        self.connection = connection


def main(boot: dict[str, Any]) -> None:
    """Serve until the watched process ends, or nobody has asked for ``idle_seconds``.

    Args:
        boot: ``listen_fd`` (a shared server) or ``connection_fd`` (a private one), ``watch`` (pid and start time of
            the process to end with), ``preload`` (modules to import), ``idle_seconds``.
    """
    os.environ.pop("PYTHONHASHSEED", None)  # Spark's, for its own shuffles
    if boot["preload"]:
        _preload(boot["preload"])
        reason = _unsafe_to_fork()
        if reason:
            print(f"No warm start: after the import of TensorFlow {reason}.", file=sys.stderr, flush=True)
            _start_anew({**boot, "preload": []})
        gc.freeze()  # a collection in a trainer would otherwise touch, and so copy, every page of the image
    Server(boot).serve()


def _preload(modules: Sequence[str]) -> None:
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception:
            # Whatever is wrong here goes wrong again in the trainer, which can report it.
            return


def _unsafe_to_fork() -> str:
    """Why this process must not be forked; "" where it may be."""
    if threading.active_count() > 1:
        return f"{threading.active_count() - 1} Python threads run"
    if has_eager_context():
        return "an eager context exists"
    with contextlib.suppress(OSError):  # no /proc: then there is nothing to look at
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the listing's own descriptor is gone by now
                if os.readlink(f"/proc/self/fd/{fd}").startswith("/dev/nvidia"):
                    return "a GPU is open"
    return ""


def _start_anew(boot: dict[str, Any]) -> None:
    with tempfile.TemporaryFile("w+") as file:
        json.dump(boot, file)
        file.seek(0)
        os.dup2(file.fileno(), 0)
    for name in ("listen_fd", "connection_fd"):
        if boot.get(name) is not None:
            os.set_inheritable(boot[name], True)
    os.execv(sys.executable, [sys.executable, "-c", BOOT])


class Server:
    """The event loop: connections in, trainers out."""

    def __init__(self, boot: dict[str, Any]) -> None:
        self._watch_pid, self._watch_start = boot["watch"]
        self._idle_seconds = float(boot["idle_seconds"])
        self._warm = bool(boot["preload"])
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._trainers: dict[int, _Trainer] = {}
        self._connections: dict[socket.socket, int | None] = {}
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
            for trainer in list(self._trainers.values()):
                kill_group(trainer.pid)

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
        self._accept()  # who came at the last moment is still served
        if not self._connections:
            self._listener.close()  # the next who comes starts a new server, while this one is still shutting down
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
        self._tell(connection, {"type": "ready", "pid": os.getpid(), "warm": self._warm})

    def _serve_connection(self, connection: socket.socket) -> None:
        try:
            mark, fds, _, _ = socket.recv_fds(connection, 1, _MOST_FILES)
            if not mark:
                raise EOFError
            spec = from_json(TrainerSpec, receive(connection))
        except (OSError, EOFError, ValueError, TypeError):
            self._drop(connection)
            return
        try:
            pid = os.fork()
        except OSError as error:  # no memory, no process slots
            self._tell(connection, {"type": "exited", "error": f"the trainer could not be started: {error}"})
            pid = -1
        if pid == 0:
            named = dict(zip(FD_NAMES, fds, strict=False))
            named |= dict(zip(spec.checkpoint_names, fds[len(FD_NAMES) :], strict=True))
            self._become_trainer(spec, named)
        for fd in fds:
            os.close(fd)
        if pid > 0:
            self._trainers[pid] = _Trainer(pid, connection)
            self._connections[connection] = pid
            self._tell(connection, {"type": "started", "pid": pid})

    def _become_trainer(self, spec: TrainerSpec, fds: dict[str, int]) -> None:
        """In the child. Never returns."""
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
            trainer = self._trainers.pop(pid)
            kill_group(pid)  # what the function left running
            unit = 1 if sys.platform == "darwin" else 1024
            self._tell(
                trainer.connection,
                {
                    "type": "exited",
                    "code": os.waitstatus_to_exitcode(status),
                    "peak_rss": usage.ru_maxrss * unit if usage else 0,
                },
            )
            if trainer.connection not in self._connections:
                trainer.connection.close()

    def _drop(self, connection: socket.socket) -> None:
        """The agent is gone, or wants no more: then its trainer goes, and the agent hears when it has."""
        pid = self._connections.pop(connection, None)
        self._selector.unregister(connection)
        if pid is not None and pid in self._trainers:
            kill_group(pid)
        else:
            connection.close()

    @staticmethod
    def _tell(connection: socket.socket, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # an agent that is gone shows as the end of its connection
            connection.sendall(frame(message))
