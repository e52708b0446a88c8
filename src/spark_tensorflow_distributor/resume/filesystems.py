"""Directories of all file systems, local and remote, in which a file is whole or not there.

It is written under another name first, and then renamed.
"""

import contextlib
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol

from ..errors import CheckpointError

# What the names of files begin with that are being written, or were when a process was killed.
HALF_WRITTEN = ".stfd-"
_BLOCK_BYTES = 16 << 20

Write = Callable[[BinaryIO], object]


class Filesystem(Protocol):
    """A directory of some file system."""

    def make(self) -> None: ...
    def join(self, name: str) -> str: ...
    def list(self) -> list[str]: ...
    def read(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]: ...
    def write(self, name: str, write: Write) -> None: ...
    def remove(self, name: str) -> None: ...


def files_of(path: str) -> Filesystem:
    """The directory of a path or URL.

    Raises:
        CheckpointError: neither TensorFlow nor fsspec knows the file system.
    """
    scheme, found, rest = path.partition("://")
    if not found:
        return LocalFiles(path)
    if scheme == "file":
        return LocalFiles("/" + rest.lstrip("/"))
    import tensorflow as tf

    if scheme in tf.io.gfile.get_registered_schemes():
        return TensorFlowFiles(path)
    try:
        import fsspec

        return FsspecFiles(*fsspec.core.url_to_fs(path))
    except (ImportError, ValueError) as error:
        known = ", ".join(each for each in tf.io.gfile.get_registered_schemes() if each)
        raise CheckpointError(
            f"checkpoint_dir={path!r}: TensorFlow knows {known} here, and fsspec does not take it either ({error}). "
            f"Install fsspec with what it needs for {scheme}:// on the executors, or choose another place."
        ) from error


class LocalFiles:
    """A directory of this host, or one that is mounted on all."""

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(os.path.expanduser(path))

    def make(self) -> None:
        try:
            os.makedirs(self._path, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint_dir={self._path!r} cannot be made on {socket.gethostname()}: {error}. Choose a place "
                "where the executors' user may write."
            ) from error

    def join(self, name: str) -> str:
        return os.path.join(self._path, name)

    def list(self) -> list[str]:
        return os.listdir(self._path)

    def read(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        return open(self.join(name), "rb")

    def write(self, name: str, write: Write) -> None:
        descriptor, hidden = tempfile.mkstemp(prefix=HALF_WRITTEN, dir=self._path)
        try:
            with os.fdopen(descriptor, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(hidden, self.join(name))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(hidden)
            raise
        with contextlib.suppress(OSError):  # not every file system lets a directory be synced
            descriptor = os.open(self._path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.join(name))


class _Remote:
    """What the two kinds of remote directories have in common: the file is made here, then sent whole.

    It is made without a name, so that nothing of it stays here when this process is killed.
    """

    def write(self, name: str, write: Write) -> None:
        hidden = self.join(HALF_WRITTEN + uuid.uuid4().hex)
        with tempfile.TemporaryFile() as file:
            write(file)
            file.seek(0)
            with self._errors(name):
                with self._open(hidden, "wb") as there:
                    shutil.copyfileobj(file, there, _BLOCK_BYTES)
                self._move(hidden, self.join(name))

    @contextlib.contextmanager
    def read(self, name: str) -> Iterator[BinaryIO]:
        with tempfile.TemporaryFile() as file:
            with self._errors(name), self._open(self.join(name), "rb") as there:
                shutil.copyfileobj(there, file, _BLOCK_BYTES)
            file.seek(0)
            yield file

    def join(self, name: str) -> str:
        raise NotImplementedError

    def _errors(self, name: str) -> contextlib.AbstractContextManager[None]:
        """The file system's own errors as an OSError about the file."""
        return contextlib.nullcontext()

    def _open(self, path: str, mode: str) -> Any:
        raise NotImplementedError

    def _move(self, path: str, to: str) -> None:
        raise NotImplementedError


class TensorFlowFiles(_Remote):
    """A directory that ``tf.io.gfile`` reaches."""

    def __init__(self, url: str) -> None:
        import tensorflow as tf

        self._url, self._gfile, self._error = url.rstrip("/"), tf.io.gfile, tf.errors.OpError

    def make(self) -> None:
        self._gfile.makedirs(self._url)

    def join(self, name: str) -> str:
        return f"{self._url}/{name}"

    def list(self) -> list[str]:
        return [each.rstrip("/") for each in self._gfile.listdir(self._url)]

    def remove(self, name: str) -> None:
        self._gfile.remove(self.join(name))

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise OSError(f"{self.join(name)}: {error.message}") from error

    def _open(self, path: str, mode: str) -> Any:
        return self._gfile.GFile(path, mode)

    def _move(self, path: str, to: str) -> None:
        self._gfile.rename(path, to, overwrite=True)


class FsspecFiles(_Remote):
    """A directory that fsspec reaches."""

    def __init__(self, system: Any, path: str) -> None:
        self._system, self._path = system, path.rstrip("/")

    def make(self) -> None:
        self._system.makedirs(self._path, exist_ok=True)

    def join(self, name: str) -> str:
        return f"{self._path}/{name}"

    def list(self) -> list[str]:
        self._system.invalidate_cache()
        return [os.path.basename(each.rstrip("/")) for each in self._system.ls(self._path, detail=False)]

    def remove(self, name: str) -> None:
        self._system.rm_file(self.join(name))

    def _open(self, path: str, mode: str) -> Any:
        return self._system.open(path, mode)

    def _move(self, path: str, to: str) -> None:
        self._system.mv(path, to)
