"""Stores checkpoints in a folder that all hosts share, or on the driver.

A checkpoint is one file, so it is either complete or absent. See ``names`` for how checkpoints are named and how many
are kept.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Generic, Protocol, TypeVar

from ..errors import CheckpointError
from ..formatting import gibibytes, one_line, sentence
from .filesystems import TEMPORARY_PREFIX, Write, open_directory
from .memory import total_memory
from .names import is_checkpoint_name, lane_of, outdated
from .settings import CheckpointSettings

T = TypeVar("T")
_PREFIX, _SUFFIX = "stfd-", ".npz"
_FINISHED = "stfd-finished.json"
_FINISHED_BYTES = 10_000


class CheckpointStore(Protocol):
    """Keeps checkpoints."""

    def names(self) -> list[str]:
        """Return the names of all checkpoints, in no particular order."""

    def open(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """Open a checkpoint for reading."""

    def put(self, name: str, write: Write) -> None:
        """Store a checkpoint, and delete outdated ones.

        Raises:
            OSError: If the checkpoint cannot be written.
        """

    def describe(self, name: str) -> str:
        """Return a checkpoint's path or location, for messages."""

    def finish(self) -> None:
        """Mark the run as finished, so that the next run in this folder starts from scratch."""


@dataclass(frozen=True)
class StoredCheckpoint(Generic[T]):
    """A checkpoint that was read.

    Attributes:
        name: The checkpoint's name.
        data: The contents of the file.
        content: The decoded contents.
    """

    name: str
    data: bytes
    content: T


def newest_checkpoint(
    store: CheckpointStore, lane: str, decode: Callable[[bytes], T], warn: Callable[[str], None]
) -> StoredCheckpoint[T] | None:
    """Read the newest undamaged checkpoint of a lane.

    Args:
        store: Holds the checkpoints.
        lane: The lane to search.
        decode: Decodes the contents of a file; raises if they cannot be used.
        warn: Called with a message for each checkpoint that is skipped.
    """
    for name in sorted((each for each in store.names() if lane_of(each) == lane), reverse=True):
        try:
            with store.open(name) as file:
                data = _read_whole(file)
            return StoredCheckpoint(name, data, decode(data))
        except Exception as error:  # whatever is wrong, the previous checkpoint may be intact
            reason = str(error) if isinstance(error, CheckpointError | OSError) else one_line(error)
            warn(
                f"Skipping checkpoint {store.describe(name)}: {sentence(reason)} Using the one before it, if there is "
                "one."
            )
    return None


def _read_whole(file: BinaryIO) -> bytes:
    """Read a file, unless it is larger than the memory of this host or container.

    Raises:
        CheckpointError: If the file is larger.
        OSError: If the file cannot be read.
    """
    size, limit = file.seek(0, os.SEEK_END), total_memory()
    if size > limit:
        raise CheckpointError(f"it has {gibibytes(size)}, but this host or container has {gibibytes(limit)} of memory")
    file.seek(0)
    return file.read()


def open_store(
    settings: CheckpointSettings,
    files: Mapping[str, int],
    is_chief: bool,
    send_file: Callable[[str, BinaryIO], None],
) -> CheckpointStore | None:
    """Return the store that the settings ask for; None if nothing is saved.

    Args:
        settings: Where checkpoints are kept.
        files: File descriptors of the checkpoints that the driver sent, by name.
        is_chief: Whether this is rank 0, which verifies the folder.
        send_file: Sends a checkpoint's name and file to the driver.

    Raises:
        CheckpointError: If the folder cannot be used, or lacks a checkpoint that an earlier attempt saved.
    """
    if settings.folder is None:
        return DriverStore(files, send_file) if settings.at_driver else None
    store = FolderStore(settings.folder, settings.run_id)
    missing = sorted(set(settings.expected) - set(store.names())) if is_chief else []
    if missing:
        raise CheckpointError(
            f"The checkpoint {store.describe(missing[-1])}, which an earlier attempt of this run saved, is missing on "
            "the host of rank 0. checkpoint_dir must be a location that all hosts share, such as a mounted file system "
            "or a URL; with checkpoint_dir=None the driver keeps the checkpoints and nothing has to be shared."
        )
    return store


class FolderStore:
    """Keeps checkpoints in a directory.

    Args:
        path: A path, or a URL that TensorFlow or fsspec supports; the directory is created if necessary.
        run_id: Identifies the run, so that a later run does not resume from one that has finished.

    Raises:
        CheckpointError: If the directory cannot be used.
    """

    def __init__(self, path: str, run_id: str) -> None:
        self._run_id = run_id
        self._filesystem = open_directory(path)
        self._is_claimed = False

    def describe(self, name: str) -> str:
        return self._filesystem.path(_file_name(name))

    def names(self) -> list[str]:
        if self._holds_a_finished_run():
            return []
        return [
            name
            for each in self._filesystem.list()
            if each.startswith(_PREFIX) and each.endswith(_SUFFIX)
            and is_checkpoint_name(name := each[len(_PREFIX) : -len(_SUFFIX)])
        ]  # fmt: skip

    def open(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        return self._filesystem.read(_file_name(name))

    def put(self, name: str, write: Write) -> None:
        self._claim()
        self._filesystem.write(_file_name(name), write)
        for old in outdated(self.names()):
            self._filesystem.remove(_file_name(old))

    def finish(self) -> None:
        if any(each.startswith(_PREFIX) for each in self._filesystem.list()):
            text = json.dumps({"run": self._run_id}).encode()
            self._filesystem.write(_FINISHED, lambda file: file.write(text))

    def _holds_a_finished_run(self) -> bool:
        """Return whether the checkpoints belong to another run, which has finished."""
        if self._is_claimed or _FINISHED not in self._filesystem.list():
            return False
        with self._filesystem.read(_FINISHED) as file, contextlib.suppress(ValueError, RecursionError):
            found = json.loads(file.read(_FINISHED_BYTES))
            return not isinstance(found, dict) or found.get("run") != self._run_id
        return True

    def _claim(self) -> None:
        """Clean up after finished runs and killed writers, before this run writes its first file."""
        if self._is_claimed:
            return
        leftovers = (TEMPORARY_PREFIX, _PREFIX) if self._holds_a_finished_run() else (TEMPORARY_PREFIX,)
        for each in self._filesystem.list():
            if each.startswith(leftovers):
                self._filesystem.remove(each)
        self._is_claimed = True


def _file_name(name: str) -> str:
    return f"{_PREFIX}{name}{_SUFFIX}"


class DriverStore:
    """A worker's view of the checkpoints that the driver keeps.

    Args:
        files: File descriptors of the checkpoints that came from the driver, by name.
        send_file: Sends a checkpoint's name and file to the driver.
    """

    def __init__(self, files: Mapping[str, int], send_file: Callable[[str, BinaryIO], None]) -> None:
        self._files = files
        self._send_file = send_file

    def describe(self, name: str) -> str:
        return f"{name}, kept on the driver"

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
            self._send_file(name, file)

    def finish(self) -> None:
        """Do nothing: the driver deletes its checkpoints when the run ends."""
