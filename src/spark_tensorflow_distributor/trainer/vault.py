"""Where checkpoints are kept: in a folder that all hosts reach, or at the driver.

A checkpoint is one file, so that it is either there or not: a folder gets it under another name first, and an object
store shows a file when it is complete. Names sort by age within a lane: ``fit0-00000012``. Of each lane the last two
stay, the older one for the case that the newer turns out to be damaged.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any, BinaryIO, Protocol

from ..errors import CheckpointError
from ..protocol import lane_of, outdated
from . import snapshot

_NAME = re.compile(r"([a-z]+\d*)-(\d{8})$")
_PREFIX, _SUFFIX = "stfd-", ".npz"
_FINISHED = "stfd-finished.json"
_BLOCK_BYTES = 16 << 20

Write = Callable[[BinaryIO], object]


class Vault(Protocol):
    """Keeps checkpoints."""

    def names(self) -> list[str]:
        """All there are, in no order."""

    def open(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """To be read."""

    def put(self, name: str, write: Write) -> None:
        """Keep one more, and let go of what is outdated.

        Raises:
            OSError: it could not be written.
        """

    def where(self, name: str) -> str:
        """In words."""

    def finish(self) -> None:
        """The run has ended well: its checkpoints are for nobody but itself."""


def latest(vault: Vault, lane: str, warn: Callable[[str], None]) -> tuple[str, dict[str, Any], Any] | None:
    """Name, facts and state of the newest checkpoint of a lane that is whole."""
    found = newest(vault, lane, warn)
    return None if found is None else (found[0], *found[2:])


def newest(vault: Vault, lane: str, warn: Callable[[str], None]) -> tuple[str, bytes, dict[str, Any], Any] | None:
    """The same, with the file's content behind the name."""
    for name in sorted((each for each in vault.names() if lane_of(each) == lane), reverse=True):
        try:
            with vault.open(name) as file:
                data = file.read()
            return (name, data, *snapshot.read(BytesIO(data)))
        except (CheckpointError, OSError) as error:
            warn(
                f"The checkpoint {vault.where(name)} is left out: {error}. The one before it is taken, if there is one."
            )
    return None


class Folder:
    """A directory: a path, or a URL of a file system that TensorFlow or fsspec knows.

    Args:
        path: of the directory; made where it is missing.
        run: identifies the run, so that one that has ended well is not taken up by the next.
    """

    def __init__(self, path: str, run: str) -> None:
        self._run = run
        self._files = files_of(path)
        self._files.make()
        self._adopted = False

    def where(self, name: str) -> str:
        return self._files.join(_file(name))

    def names(self) -> list[str]:
        if self._belongs_to_a_finished_run():
            return []
        return [
            name
            for each in self._files.list()
            if each.startswith(_PREFIX) and each.endswith(_SUFFIX)
            and _NAME.match(name := each[len(_PREFIX) : -len(_SUFFIX)])
        ]  # fmt: skip

    def open(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        return self._files.read(_file(name))

    def put(self, name: str, write: Write) -> None:
        self._adopt()
        self._files.write(_file(name), write)
        for old in outdated(self.names()):
            self._files.remove(_file(old))

    def finish(self) -> None:
        if any(each.startswith(_PREFIX) for each in self._files.list()):
            text = json.dumps({"run": self._run}).encode()
            self._files.write(_FINISHED, lambda file: file.write(text))

    def _belongs_to_a_finished_run(self) -> bool:
        if self._adopted or _FINISHED not in self._files.list():
            return False
        with self._files.read(_FINISHED) as file, contextlib.suppress(ValueError):
            return bool(json.loads(file.read()).get("run") != self._run)
        return True

    def _adopt(self) -> None:
        """Make it this run's: what another one has left is removed before the first file of this one."""
        if self._adopted:
            return
        if self._belongs_to_a_finished_run():
            for each in self._files.list():
                if each.startswith(_PREFIX):
                    self._files.remove(each)
        for each in self._files.list():
            if each.startswith(f".{_PREFIX}"):  # half-written by a process that was killed
                self._files.remove(each)
        self._adopted = True


def _file(name: str) -> str:
    return f"{_PREFIX}{name}{_SUFFIX}"


class _Files(Protocol):
    """A directory of some file system."""

    def make(self) -> None: ...
    def join(self, name: str) -> str: ...
    def list(self) -> list[str]: ...
    def read(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]: ...
    def write(self, name: str, write: Write) -> None: ...
    def remove(self, name: str) -> None: ...


def files_of(path: str) -> _Files:
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
        descriptor, hidden = tempfile.mkstemp(prefix=f".{_PREFIX}", dir=self._path)
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
        hidden = self.join(f".{_PREFIX}{uuid.uuid4().hex}")
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


class AtDriver:
    """The driver keeps them: read from files that the agent has fetched, and written to files that it fetches.

    Args:
        files: descriptors of what the driver keeps, by name.
        send: gives a file to the agent.
    """

    def __init__(self, files: dict[str, int], send: Callable[[str, BinaryIO], None]) -> None:
        self._files = files
        self._send = send

    def where(self, name: str) -> str:
        return f"{name}, kept at the driver"

    def names(self) -> list[str]:
        return list(self._files)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        with os.fdopen(os.dup(self._files[name]), "rb") as file:
            file.seek(0)
            yield file

    def put(self, name: str, write: Write) -> None:
        with tempfile.TemporaryFile() as file:
            write(file)
            file.flush()
            self._send(name, file)

    def finish(self) -> None:
        """The driver does so by itself."""
