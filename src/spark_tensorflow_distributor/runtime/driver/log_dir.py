"""The driver's ``log_dir``: receives the files that the workers write below theirs."""

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ...errors import ConfigurationError
from ...formatting import one_line
from ..log_pieces import LogPiece, LogReceipt
from ..wire import Message

_log = logging.getLogger(__name__)

_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class _Writer:
    """A worker in one attempt."""

    attempt: int
    rank: int


class LogDirectory:
    """Writes pieces of files below one directory, and nowhere else.

    Names come from the workers, so they are not trusted: a path must be relative, without ``..``, and no part of it may
    be a symbolic link. Files that several ranks write under the same name do not overwrite each other: the lowest rank
    keeps the name, and the file of rank 2 becomes ``name.rank2``. If a later attempt writes a file again, the earlier
    one becomes ``name.attempt0``.

    Args:
        root: The directory, which is created if it does not exist.

    Raises:
        ConfigurationError: The directory cannot be created.
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        try:
            os.makedirs(self.root, exist_ok=True)
            self._root_fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigurationError(
                f"log_dir is {root!r}, which cannot be used as a directory on the driver: {error}."
            ) from error
        # Maps each path here to its writer and the writer's own path; and the reverse.
        self._owners: dict[str, tuple[_Writer, str]] = {}
        self._names: dict[tuple[_Writer, str], str] = {}

    def close(self) -> None:
        os.close(self._root_fd)

    def write(self, rank: int, attempt: int, piece: LogPiece) -> int:
        """Write a piece; return the size of the file in bytes.

        A piece that does not continue the driver's file, because somebody has changed the file, is not written.

        Raises:
            OSError: For example, the path is not allowed, or the disk is full.
        """
        parts = _checked_parts(piece.path)
        writer = _Writer(attempt, rank)
        if piece.data is None:
            self._remove(writer, piece.path)
            return 0
        with self._folder(parts[:-1]) as folder:
            if piece.offset:
                name = self._names.get((writer, piece.path))
                return 0 if name is None else _append(folder, os.path.basename(name), piece)
            name = os.path.basename(self._claim(folder, writer, piece.path))
            _replace(folder, name, piece.data)
            return len(piece.data)

    @contextlib.contextmanager
    def _folder(self, names: list[str]) -> Iterator[int]:
        """Open a folder below the root, one level at a time, so that no symbolic link is followed."""
        fd = os.dup(self._root_fd)
        try:
            for name in names:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=fd)
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _FLAGS, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    def _claim(self, folder: int, writer: _Writer, path: str) -> str:
        """Return the path under which a worker's file is kept here; move another worker's file out of the way."""
        known = self._names.get((writer, path))
        if known is not None:
            return known
        owner, source = self._owners.get(path, (None, ""))
        if owner is None:
            return self._assign(writer, path, path)
        same_attempt = owner.attempt == writer.attempt
        if same_attempt and owner.rank < writer.rank:
            return self._assign(writer, path, self._free_name(f"{path}.rank{writer.rank}"))
        moved = self._free_name(f"{path}.rank{owner.rank}" if same_attempt else f"{path}.attempt{owner.attempt}")
        with contextlib.suppress(FileNotFoundError):  # removed by somebody on the driver
            os.replace(os.path.basename(path), os.path.basename(moved), src_dir_fd=folder, dst_dir_fd=folder)
        self._assign(owner, source, moved)
        return self._assign(writer, path, path)

    def _assign(self, writer: _Writer, path: str, chosen: str) -> str:
        self._owners[chosen] = (writer, path)
        self._names[writer, path] = chosen
        return chosen

    def _free_name(self, path: str) -> str:
        while path in self._owners:
            path += "_"
        return path

    def _remove(self, writer: _Writer, path: str) -> None:
        name = self._names.pop((writer, path), None)
        if name is None:  # removed before any of its data arrived
            return
        del self._owners[name]
        *folders, base = name.split("/")
        with contextlib.suppress(FileNotFoundError), self._folder(folders) as folder:
            os.unlink(base, dir_fd=folder)


def _checked_parts(path: str) -> list[str]:
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):  # absolute paths have an empty part
        raise PermissionError(f"{path!r} is not a path below log_dir")
    return parts


def _append(folder: int, name: str, piece: LogPiece) -> int:
    try:
        fd = os.open(name, os.O_WRONLY | _FLAGS, dir_fd=folder)
    except FileNotFoundError:
        return 0
    with os.fdopen(fd, "wb") as file:
        size = os.fstat(fd).st_size
        if size != piece.offset:
            return size
        file.seek(size)
        file.write(piece.data or b"")
    return piece.end


def _replace(folder: int, name: str, data: bytes) -> None:
    """Start a file anew. Programs that are reading the old file can continue, instead of seeing it truncated."""
    temporary = f".spark-tensorflow-distributor-{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS, 0o666, dir_fd=folder)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
    os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)


class LogWriter:
    """Writes pieces on a thread, so that a slow disk does not delay the driver's decisions.

    Args:
        directory: Where to write.
        attempt: The number of the attempt whose pieces arrive.
        answer: Sends a message to a rank; called with the receipt of every piece, on the writer's thread.
    """

    def __init__(self, directory: LogDirectory, attempt: int, answer: Callable[[int, Message], None]) -> None:
        self._directory, self._attempt, self._answer = directory, attempt, answer
        # Workers wait for a receipt before they send another piece, so this holds at most one for each of them.
        self._pieces: queue.SimpleQueue[tuple[int, Message] | None] = queue.SimpleQueue()
        self._has_warned = False
        self._thread = threading.Thread(target=self._run, name="spark-tensorflow-log-dir", daemon=True)

    def start(self) -> None:
        """Start writing."""
        self._thread.start()

    def put(self, rank: int, message: Message) -> None:
        """Queue a worker's piece."""
        self._pieces.put((rank, message))

    def close(self) -> None:
        """Write all pieces that have arrived, and stop."""
        self._pieces.put(None)
        if self._thread.ident is not None:  # the thread has been started
            self._thread.join()

    def _run(self) -> None:
        while (item := self._pieces.get()) is not None:
            rank, message = item
            try:
                piece = LogPiece.from_message(message)
            except (KeyError, TypeError, ValueError, AttributeError) as malformed:
                _log.warning("Rank %d sent a malformed piece of a log file: %r", rank, malformed)
                continue
            size, error = 0, ""
            try:
                size = self._directory.write(rank, self._attempt, piece)
            except (OSError, ValueError) as refusal:  # ValueError: a name that cannot be encoded here
                error = one_line(refusal)
                self._warn(rank, piece, error)
            self._answer(rank, LogReceipt(piece.path, piece.offset, size, error).to_message())

    def _warn(self, rank: int, piece: LogPiece, error: str) -> None:
        level = logging.DEBUG if self._has_warned else logging.WARNING
        self._has_warned = True
        _log.log(
            level,
            "%s of rank %d cannot be written below log_dir=%s: %s. Training continues. Later failures of this kind are "
            "logged at level DEBUG.",
            piece.path, rank, self._directory.root, error,
        )  # fmt: skip
