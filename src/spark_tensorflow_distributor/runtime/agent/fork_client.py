"""Finds or starts this executor's fork server, and requests this task's trainer from it."""

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import BinaryIO

from .. import _importer
from ..devices import DEFAULT_ENV
from ..process_tools import BOOT, kill_group, peer_uid, start_time
from ..shipping import PACKAGE, importer_source, library_sources
from ..specs import TrainerSpec
from ..wire import FrameReader, Message, frame

# Variables that TensorFlow and its libraries read when they are imported. Processes that differ in them must not share
# a server.
_READ_AT_IMPORT = (
    "TF_",
    "KERAS_",
    "XLA_",
    "OMP_",
    "MKL_",
    "KMP_",
    "ONEDNN_",
    "OPENBLAS_",
    "LD_",
    "GRPC_",
    "PYTHONPATH",
)
_CONNECT_SECONDS = 10.0
# How much to show of the output of a server that has died, in bytes.
_MAX_LAST_WORDS = 4000


class ForkClient:
    """A connection to a fork server.

    Args:
        warm: Whether to share the executor's server, which has already imported TensorFlow, instead of starting a
            private server for this task, which imports nothing.
        env: The run's ``env``.
        preload: Modules that a warm server imports.
        warm_seconds: How long a warm server outlives its last use.

    Attributes:
        trainer_pid: Process id of the trainer, or None before it is started.
        warning: Why this is not the shared server that was requested, or None.
    """

    def __init__(self, *, warm: bool, env: Mapping[str, str], preload: Sequence[str], warm_seconds: float) -> None:
        self._env = {**DEFAULT_ENV, **os.environ, **env}
        self._path = import_path(env)
        self._preload = list(preload) if warm else []
        self._warm_seconds = warm_seconds
        # Sharing needs Linux's abstract socket names. They vanish with their server, and are not visible in other
        # containers and network namespaces of the host.
        self._shared = warm and sys.platform.startswith("linux")
        self._reader = FrameReader()
        self._process: subprocess.Popen[bytes] | None = None
        self._import_output: BinaryIO | None = None
        self.trainer_pid: int | None = None
        self.warning: str | None = None
        self._connection = (self._connect() if self._shared else None) or self._start_private()

    def fileno(self) -> int:
        return self._connection.fileno()

    def launch(self, spec: TrainerSpec, fds: Sequence[int]) -> None:
        """Request a trainer.

        Args:
            spec: Describes the trainer.
            fds: Descriptors in the order of ``forkserver.FD_NAMES``, followed by the checkpoints'. The caller may
                close them afterwards.
        """
        socket.send_fds(self._connection, [b"L"], list(fds))
        self._connection.sendall(frame(asdict(spec)))

    def receive(self) -> Iterator[Message]:
        """Yield the server's messages: ``ready``, ``started``, ``exited``.

        Raises:
            EOFError: The server is gone, and the trainer with it.
        """
        try:
            data = self._connection.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            # The kernel kills the trainer with its server, but not the processes that the trainer has started.
            if self.trainer_pid is not None:
                kill_group(self.trainer_pid)
            raise EOFError(f"the fork server, which starts the trainers, has ended{self._last_words()}")
        for message in self._reader.feed(data):
            if message["type"] in ("started", "exited"):
                self.trainer_pid = message.get("pid")
            yield message

    def kill(self) -> None:
        """Make the server kill the trainer if it is still running; ``exited`` follows."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Disconnect from the server, which kills the trainer if it is still running."""
        self._connection.close()
        if self._import_output is not None:
            self._import_output.close()
        if self._process is None:
            return
        if self._shared:
            # The server outlives this task. A return code keeps Popen from warning about a child still running.
            self._process.returncode = 0
            return
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _connect(self) -> socket.socket | None:
        """Connect to the executor's server, and start it if there is none.

        Returns:
            The connection; None if something else uses the server's name, which any user of the host can take.
        """
        name = b"\0" + self._socket_name().encode()
        end = time.monotonic() + _CONNECT_SECONDS
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.setblocking(False)  # with a full queue, a blocking connect would wait forever
            try:
                connection.connect(name)
            except OSError as error:
                connection.close()
                if error.errno not in (errno.ECONNREFUSED, errno.EAGAIN) or time.monotonic() > end:
                    self._become_private(f"cannot be connected to ({error})")
                    return None
                if error.errno == errno.EAGAIN or not self._start_shared(name):
                    time.sleep(0.005)  # another task of this executor is starting the server
                continue
            connection.setblocking(True)
            if (uid := peer_uid(connection)) != os.getuid():
                connection.close()
                self._become_private(f"belongs to the user {uid} of this host")
                return None
            return connection

    def _become_private(self, problem: str) -> None:
        """Fall back to a private server, and record why."""
        self._shared = False
        self.warning = (
            f"The local socket of the executor's fork server {problem}. This worker imports TensorFlow in a process of "
            "its own, which takes longer."
        )

    def _start_shared(self, name: bytes) -> bool:
        """Start the executor's server; return False if another task has already done so.

        This process binds the name and listens on it before it starts the server. Binding decides which task starts
        the server, and tasks that connect in the meantime wait in the socket's queue until the import is done.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            try:
                listener.bind(name)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return False
                raise
            listener.listen(1024)
            self._start("listen_fd", listener.fileno())
        return True

    def _start_private(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            self._start("connection_fd", theirs.fileno())
        return ours

    def _start(self, fd_name: str, fd: int) -> None:
        watched = os.getppid()
        boot = {
            "package": PACKAGE,
            "installer": importer_source(),
            "sources": library_sources(),
            "path": self._path,
            "preload": self._preload,
            "watch": [watched, start_time(watched)],
            "idle_seconds": self._warm_seconds,
            fd_name: fd,
        }
        # TensorFlow's output during its import is shown only if the server does not survive the import.
        self._import_output = tempfile.TemporaryFile()  # noqa: SIM115 (kept with the process)
        stderr = os.dup(2)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", BOOT],
                stdin=subprocess.PIPE,
                stdout=self._import_output,
                stderr=self._import_output,
                env=self._env,
                pass_fds=[fd, stderr],
                start_new_session=True,
            )
            boot["stderr_fd"] = stderr
        finally:
            os.close(stderr)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # if the server has died, the connection ends
            self._process.stdin.write(json.dumps(boot).encode())
            self._process.stdin.close()

    def _last_words(self) -> str:
        """Return the output of a server that this process has started, up to the end of its import."""
        if self._import_output is None:
            return ""
        self._import_output.seek(0)
        text = self._import_output.read()[-_MAX_LAST_WORDS:].decode(errors="replace").strip()
        return f"; it has printed:\n{text}\n" if text else ""

    def _socket_name(self) -> str:
        watched = os.getppid()
        read = sorted((name, value) for name, value in self._env.items() if name.startswith(_READ_AT_IMPORT))
        identity = [sys.executable, read, self._preload, self._warm_seconds, _importer.fingerprint(library_sources())]
        digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        return f"stfd-{os.getuid()}-{watched}-{start_time(watched)}-{digest}"


def import_path(env: Mapping[str, str]) -> list[str]:
    """Return the trainers' ``sys.path``: the PYTHONPATH of the run's ``env``, then the path of Spark's Python worker.

    Spark puts PySpark first as a zip file, which Python compiles again in every process (0.4 s). If the same version
    is also installed, the zip goes last.
    """
    added = [entry for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry]
    path = added + [entry for entry in sys.path if entry not in added]
    zips = [entry for entry in path if entry.endswith(("pyspark.zip", "-src.zip"))]
    return [entry for entry in path if entry not in zips] + zips if _pyspark_is_installed() else path


def _pyspark_is_installed() -> bool:
    pyspark = sys.modules.get("pyspark")
    try:
        return pyspark is not None and importlib.metadata.version("pyspark") == pyspark.__version__
    except importlib.metadata.PackageNotFoundError:
        return False
