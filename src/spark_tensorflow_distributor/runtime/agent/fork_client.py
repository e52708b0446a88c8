"""Finds or starts the fork server of this executor, and has it fork this task's trainer."""

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ...errors import ClusterError
from .. import _importer
from ..devices import DEFAULT_ENV
from ..process_tools import BOOT, kill_group, peer_uid, start_time
from ..shipping import PACKAGE, importer_source, own_sources
from ..specs import TrainerSpec
from ..wire import FrameReader, frame

# Environment that TensorFlow and what lies under it read when they are imported: images that differ in it differ.
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
_FIND_SECONDS = 10.0


class ForkClient:
    """A connection to a fork server.

    Args:
        warm: share the executor's server, which has imported TensorFlow; else start one of this task's own, which
            imports nothing.
        env: the run's own environment variables.
        preload: modules that a warm server imports.
        warm_seconds: how long a warm server outlives its last use.
    """

    def __init__(self, *, warm: bool, env: Mapping[str, str], preload: Sequence[str], warm_seconds: float) -> None:
        self._env = {**DEFAULT_ENV, **os.environ, **env}
        self._path = import_path(env)
        self._preload = list(preload) if warm else []
        self._warm_seconds = warm_seconds
        # A Linux name for a socket that is no file: it is gone when its server is, and a host's containers and
        # network namespaces do not see each other's.
        self._shared = warm and sys.platform.startswith("linux")
        self._reader = FrameReader()
        self._process: subprocess.Popen[bytes] | None = None
        self.trainer: int | None = None
        self.connection = self._find() if self._shared else self._start_private()

    def fileno(self) -> int:
        return self.connection.fileno()

    def launch(self, spec: TrainerSpec, fds: Sequence[int]) -> None:
        """Ask for a trainer. ``fds`` in the order of ``forkserver.FD_NAMES``; they may be closed afterwards."""
        socket.send_fds(self.connection, [b"L"], list(fds))
        self.connection.sendall(frame(asdict(spec)))

    def receive(self) -> Iterator[dict[str, Any]]:
        """What the server tells: ``ready``, ``started``, ``exited``.

        Raises:
            EOFError: the server is gone, and with it the trainer.
        """
        try:
            data = self.connection.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            # The kernel ends the trainer with its server, but not what the trainer itself has started.
            if self.trainer is not None:
                kill_group(self.trainer)
            raise EOFError("the process that starts the trainers has ended")
        for message in self._reader.feed(data):
            if message["type"] in ("started", "exited"):
                self.trainer = message.get("pid")
            yield message

    def kill(self) -> None:
        """Have the trainer killed, if it still runs; ``exited`` follows."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let go of the server, which kills the trainer if it still runs."""
        self.connection.close()
        if self._process is not None:
            if not self._shared:
                try:
                    self._process.wait(5)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
            # A shared server outlives this task: not a child to wait for, nor to warn about.
            self._process.returncode = self._process.returncode or 0

    def _find(self) -> socket.socket:
        name = b"\0" + self._name().encode()
        end = time.monotonic() + _FIND_SECONDS
        while True:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.connect(name)
            except OSError as error:
                connection.close()
                if error.errno not in (errno.ECONNREFUSED, errno.EAGAIN) or time.monotonic() > end:
                    raise
                if error.errno == errno.EAGAIN or not self._start_shared(name):
                    time.sleep(0.005)  # another task of this executor is just starting it
                continue
            if peer_uid(connection) != os.getuid():
                connection.close()
                raise ClusterError("The local socket of the fork server belongs to another user of this host.")
            return connection

    def _start_shared(self, name: bytes) -> bool:
        """Start the executor's server; False where another task was faster.

        The name is bound and listened to here, before the server runs: binding decides who starts it, and who
        connects meanwhile waits in the socket's queue for as long as the import takes.
        """
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            try:
                listener.bind(name)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return False
                raise
            listener.listen(1024)
            self._start({"listen_fd": listener.fileno()}, listener.fileno())
        return True

    def _start_private(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            self._start({"connection_fd": theirs.fileno()}, theirs.fileno())
        return ours

    def _start(self, place: Mapping[str, int], fd: int) -> None:
        watched = os.getppid()
        boot = {
            "package": PACKAGE,
            "installer": importer_source(),
            "sources": own_sources(),
            "path": self._path,
            "preload": self._preload,
            "watch": [watched, start_time(watched)],
            "idle_seconds": self._warm_seconds,
            **place,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-c", BOOT],
            stdin=subprocess.PIPE,
            # What is printed during the import goes where Spark's Python worker prints: the executor's stderr.
            stdout=2,
            stderr=2,
            env=self._env,
            pass_fds=[fd],
            start_new_session=True,
        )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: shows as the end of the connection
            self._process.stdin.write(json.dumps(boot).encode())
            self._process.stdin.close()

    def _name(self) -> str:
        watched = os.getppid()
        read = {name: value for name, value in self._env.items() if name.startswith(_READ_AT_IMPORT)}
        identity = json.dumps(
            [
                sys.executable,
                sorted(read.items()),
                self._preload,
                self._warm_seconds,
                _importer.fingerprint(own_sources()),
            ]
        )
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return f"stfd-{os.getuid()}-{watched}-{start_time(watched)}-{digest}"


def import_path(env: Mapping[str, str]) -> list[str]:
    """Where trainers look for modules: what the run's ``env`` adds by PYTHONPATH, then what Spark's worker has.

    Spark puts PySpark before all else as a zip file, which Python compiles anew in every process (0.4 s). Where the
    very version is installed beside it, the zip goes last.
    """
    own = [entry for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry]
    path = own + [entry for entry in sys.path if entry not in own]
    zips = [entry for entry in path if entry.endswith(("pyspark.zip", "-src.zip"))]
    return [entry for entry in path if entry not in zips] + zips if _pyspark_is_installed() else path


def _pyspark_is_installed() -> bool:
    pyspark = sys.modules.get("pyspark")
    try:
        return pyspark is not None and importlib.metadata.version("pyspark") == pyspark.__version__
    except importlib.metadata.PackageNotFoundError:
        return False
