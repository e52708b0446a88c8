"""A directory on a local or remote file system, where a file is either complete or absent.

Every file is written under a temporary name and then renamed.
"""

import contextlib
import errno
import logging
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol, TypeAlias

from ..errors import CheckpointError
from ..formatting import first_line, one_line, sentence

_log = logging.getLogger(__name__)

# Prefix of files that are being written, or were being written when a process was killed.
TEMPORARY_PREFIX = ".stfd-"
_BLOCK_BYTES = 16 << 20

# Writes a file's contents.
Write: TypeAlias = Callable[[BinaryIO], object]


class Filesystem(Protocol):
    """A directory on some file system."""

    def create(self) -> None:
        """Create the directory if it does not exist."""

    def path(self, name: str) -> str:
        """Return the full path or URL of a file."""

    def list(self) -> list[str]:
        """Return the names of all files."""

    def read(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """Open a file for reading."""

    def write(self, name: str, write: Write) -> None:
        """Create or replace a file, atomically."""

    def remove(self, name: str) -> None:
        """Delete a file."""


def open_directory(path: str) -> Filesystem:
    """Return the directory at a path or URL; it is created if necessary.

    Raises:
        CheckpointError: If it cannot be opened, created or listed, for whatever reason.
    """
    try:
        directory = open_filesystem(path)
        directory.create()
        directory.list()
    except CheckpointError:
        raise
    except Exception as error:  # each file system has exceptions of its own
        _log.debug("checkpoint_dir=%r cannot be opened.", path, exc_info=True)
        reason = sentence(first_line(one_line(error), 300).rstrip(":"))
        text = f"checkpoint_dir={path!r} cannot be opened: {reason} {_advice(path.partition('://')[0])}"
        raise CheckpointError(text) from None  # Arrow's text for hdfs:// has a hundred lines
    return directory


def _advice(scheme: str) -> str:
    if scheme in ("hdfs", "viewfs"):
        return (
            f"{scheme}:// needs Java and Hadoop's client libraries on the executors: set JAVA_HOME, HADOOP_HOME and "
            "CLASSPATH (to what 'hadoop classpath --glob' prints) in the executors' environment or in env, check the "
            "URL's host and port, or choose another location."
        )
    return (
        "Check the path or URL, and whether the executors have the packages, credentials and network access that it "
        "needs; or choose another location."
    )


def open_filesystem(path: str) -> Filesystem:
    """Return the directory at a path or URL, without accessing it.

    Raises:
        CheckpointError: If neither TensorFlow nor fsspec supports the URL's scheme.
    """
    scheme, separator, rest = path.partition("://")
    if not separator:
        return LocalFilesystem(path)
    if scheme == "file":
        return LocalFilesystem("/" + rest.lstrip("/"))
    import tensorflow as tf  # imported late, because local paths work without it

    if scheme in tf.io.gfile.get_registered_schemes():
        return TensorFlowFilesystem(path)
    try:
        import fsspec

        return FsspecFilesystem(*fsspec.core.url_to_fs(path))
    except (ImportError, ValueError) as error:
        known = ", ".join(each for each in tf.io.gfile.get_registered_schemes() if each)
        raise CheckpointError(
            f"checkpoint_dir={path!r}: TensorFlow supports only {known} here, and fsspec cannot open it either "
            f"({error}). Install fsspec and its package for {scheme}:// on the executors, or choose another location."
        ) from error


class LocalFilesystem:
    """A directory on this host, or one that is mounted on all hosts."""

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(os.path.expanduser(path))

    def create(self) -> None:
        try:
            os.makedirs(self._path, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise CheckpointError(self._obstacle_text()) from error
        except OSError as error:
            raise CheckpointError(
                f"checkpoint_dir={self._path!r} cannot be created: {sentence(error)} Choose a location that the "
                "executors' user may write to."
            ) from error

    def _obstacle_text(self) -> str:
        found = self._path
        while not os.path.lexists(found):
            found = os.path.dirname(found)
        if found == self._path:
            return f"checkpoint_dir={self._path!r} exists, but is not a directory. Choose another path."
        return (
            f"checkpoint_dir={self._path!r} cannot be created, because {found!r} is not a directory. Choose another "
            "path."
        )

    def path(self, name: str) -> str:
        return os.path.join(self._path, name)

    def list(self) -> list[str]:
        return os.listdir(self._path)

    @contextlib.contextmanager
    def read(self, name: str) -> Iterator[BinaryIO]:
        with open(self.path(name), "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # a device may have no end
                raise OSError(errno.EINVAL, "not a regular file", self.path(name))
            yield file

    def write(self, name: str, write: Write) -> None:
        descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=self._path)
        try:
            with os.fdopen(descriptor, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path(name))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        with contextlib.suppress(OSError):  # not every file system can sync a directory
            descriptor = os.open(self._path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path(name))


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe without a writer would block


class _RemoteFilesystem:
    """Writes a file locally and then uploads it as a whole; to read a file, downloads it as a whole.

    The local files have no name, so nothing is left behind when this process is killed.
    """

    @contextlib.contextmanager
    def read(self, name: str) -> Iterator[BinaryIO]:
        with tempfile.TemporaryFile() as file:
            with self._errors(name), self._open(self.path(name), "rb") as remote:
                shutil.copyfileobj(remote, file, _BLOCK_BYTES)
            file.seek(0)
            yield file

    def write(self, name: str, write: Write) -> None:
        temporary = self.path(TEMPORARY_PREFIX + uuid.uuid4().hex)
        with tempfile.TemporaryFile() as file:
            write(file)
            file.seek(0)
            with self._errors(name):
                with self._open(temporary, "wb") as remote:
                    shutil.copyfileobj(file, remote, _BLOCK_BYTES)
                self._move(temporary, self.path(name))

    def path(self, name: str) -> str:
        raise NotImplementedError

    def _errors(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Turn the file system's own errors into an OSError that names the file."""
        return contextlib.nullcontext()

    def _open(self, path: str, mode: str) -> contextlib.AbstractContextManager[BinaryIO]:
        raise NotImplementedError

    def _move(self, source: str, target: str) -> None:
        raise NotImplementedError


class TensorFlowFilesystem(_RemoteFilesystem):
    """A directory on a file system that ``tf.io.gfile`` supports."""

    def __init__(self, url: str) -> None:
        import tensorflow as tf

        self._url, self._gfile, self._error = url.rstrip("/"), tf.io.gfile, tf.errors.OpError

    def create(self) -> None:
        self._gfile.makedirs(self._url)

    def path(self, name: str) -> str:
        return f"{self._url}/{name}"

    def list(self) -> list[str]:
        return [each.rstrip("/") for each in self._gfile.listdir(self._url)]

    def remove(self, name: str) -> None:
        self._gfile.remove(self.path(name))

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise OSError(f"{self.path(name)}: {error.message}") from error

    def _open(self, path: str, mode: str) -> contextlib.AbstractContextManager[BinaryIO]:
        file: contextlib.AbstractContextManager[BinaryIO] = self._gfile.GFile(path, mode)
        return file

    def _move(self, source: str, target: str) -> None:
        self._gfile.rename(source, target, overwrite=True)


class FsspecFilesystem(_RemoteFilesystem):
    """A directory on a file system that fsspec supports.

    Args:
        system: An ``fsspec.AbstractFileSystem``.
        path: The directory's path in that file system.
    """

    def __init__(self, system: Any, path: str) -> None:
        self._system, self._path = system, path.rstrip("/")

    def create(self) -> None:
        self._system.makedirs(self._path, exist_ok=True)

    def path(self, name: str) -> str:
        return f"{self._path}/{name}"

    def list(self) -> list[str]:
        self._system.invalidate_cache()
        try:
            found = self._system.ls(self._path, detail=False)
        except FileNotFoundError:  # an object store has no empty directories
            return []
        return [os.path.basename(each.rstrip("/")) for each in found]

    def remove(self, name: str) -> None:
        self._system.rm_file(self.path(name))

    def _open(self, path: str, mode: str) -> contextlib.AbstractContextManager[BinaryIO]:
        file: contextlib.AbstractContextManager[BinaryIO] = self._system.open(path, mode)
        return file

    def _move(self, source: str, target: str) -> None:
        self._system.mv(source, target)
