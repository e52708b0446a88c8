"""Follows the files below the trainer's ``log_dir``, and cuts new data into pieces for the driver.

If the part of a file that was sent is still there, the file has grown; otherwise it has been rewritten, and is sent
from its beginning. While the trainer runs, only the end of the sent part is compared, because comparing all of it would
mean reading every file again and again. When the trainer has ended, each file is compared as a whole.
"""

import contextlib
import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..log_pieces import PIECE_BYTES, LogPiece, LogReceipt

# While the trainer runs, a worker sends at most this much, to leave the network to training.
BYTES_PER_SECOND = 8 << 20
SCAN_SECONDS = 1.0
# With very many files, looking for changes may take at most a fiftieth of the agent's time.
_SCAN_SHARE = 50
_SEAM_BYTES = 64 << 10
# A receipt that is this late has been lost with its connection.
_RECEIPT_SECONDS = 30.0
# If somebody changes the driver's copy of a file, send the file again, but not forever.
_MAX_RESTARTS = 3

# Inode, size and time of modification in nanoseconds.
_Stat = tuple[int, int, int]


@dataclass
class _FollowedFile:
    """The part of a file that has been sent.

    Attributes:
        sent: Number of bytes that the driver has.
        crc: Checksum of these bytes.
        seam: Number of the last bytes sent that ``seam_crc`` covers.
        seam_crc: Checksum of the last ``seam`` bytes.
        stat: The file's metadata when it was last examined; None before.
        restarts: How often the driver's copy was found changed.
        is_refused: Whether the driver rejected the file, which is tried again when it changes.
    """

    sent: int = 0
    crc: int = 0
    seam: int = 0
    seam_crc: int = 0
    stat: _Stat | None = None
    restarts: int = 0
    is_refused: bool = False

    @property
    def missing(self) -> int:
        return max(0, (0 if self.stat is None else self.stat[1]) - self.sent)

    def restart(self) -> None:
        self.sent = self.crc = self.seam = self.seam_crc = 0

    def add(self, data: bytes) -> None:
        tail = data[-_SEAM_BYTES:]
        self.sent += len(data)
        self.crc = zlib.crc32(data, self.crc)
        self.seam, self.seam_crc = len(tail), zlib.crc32(tail)


class LogFollower:
    """Follows one directory. At most one piece is in flight, so a slow driver slows it down.

    Args:
        directory: The trainer's ``log_dir``.
        clock: Returns seconds, as ``time.monotonic``.

    Attributes:
        error: Why the driver last rejected a file; empty if it has accepted all of them.
        last_receipt: When the driver last answered, by the clock; initially, when this object was created.
    """

    def __init__(self, directory: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.directory = directory
        self.error = ""
        self.last_receipt = clock()
        self._clock = clock
        self._files: dict[str, _FollowedFile] = {}
        self._changed: list[str] = []
        self._gone: list[str] = []
        self._in_flight: LogPiece | None = None
        self._receipt_due = self._next_scan = self._next_piece = 0.0
        self._is_final = self._has_compared_all = False

    def next_piece(self) -> LogPiece | None:
        """Return a piece that is due, or None. The driver's answer goes to :meth:`on_receipt`."""
        now = self._clock()
        if self._in_flight is None:
            if now < self._next_piece and not self._is_final:
                return None
            self._look_for_changes(now)
            self._in_flight = self._cut()
            if self._in_flight is not None:
                self._next_piece = now + len(self._in_flight.data or b"") / BYTES_PER_SECOND
        elif now < self._receipt_due:
            return None
        self._receipt_due = now + _RECEIPT_SECONDS
        return self._in_flight

    def on_receipt(self, receipt: LogReceipt) -> None:
        """Handle the driver's answer to the piece in flight."""
        piece = self._in_flight
        if piece is None or (receipt.path, receipt.offset) != (piece.path, piece.offset):
            return  # the second answer to a piece that was sent twice
        self._in_flight, self.last_receipt = None, self._clock()
        file = self._files.get(piece.path)
        if file is None or piece.data is None:
            return
        if receipt.error:
            file.is_refused, self.error = True, receipt.error
            return
        file.is_refused = False
        if not any(each.is_refused for each in self._files.values()):
            self.error = ""
        if receipt.size == piece.end:
            if not piece.offset:
                file.restart()
            file.add(piece.data)
        elif file.restarts < _MAX_RESTARTS:
            file.restarts += 1
            file.restart()
        else:
            file.is_refused, self.error = True, "another program changes this file in the driver's log_dir"
            return
        # An empty piece means that the file has shrunk, which the next scan handles.
        if file.missing and (piece.data or not file.sent):
            self._changed.append(piece.path)  # behind the others: a large file must not delay small ones

    def on_reconnected(self) -> None:
        """Send the piece in flight again, which may have been lost with the connection."""
        self._receipt_due = 0.0

    def finish(self) -> None:
        """Note that the trainer has ended: compare every file as a whole, and send the rest without a rate limit."""
        self._is_final = True

    @property
    def is_complete(self) -> bool:
        """Whether, after :meth:`finish`, nothing is left to send."""
        return self._has_compared_all and self._in_flight is None and not self._changed and not self._gone

    @property
    def missing_bytes(self) -> int:
        """How many bytes the driver still lacks, as far as is known."""
        return sum(file.missing for file in self._files.values())

    def seconds_until_due(self) -> float:
        """Return how long :meth:`next_piece` will return None unless a receipt arrives."""
        if self._in_flight is not None:
            due = self._receipt_due
        else:
            due = self._next_piece if self._changed or self._gone else max(self._next_scan, self._next_piece)
        return max(0.0, due - self._clock())

    def _look_for_changes(self, now: float) -> None:
        if self._is_final:
            if self._changed or self._gone or self._has_compared_all:
                return
            self._has_compared_all = True
        elif now < self._next_scan:
            return
        found = dict(_files_below(self.directory))
        for path, seen in found.items():
            file = self._files.setdefault(path, _FollowedFile())
            if self._is_final or seen != file.stat:
                if self._has_changed(path, file, seen) and path not in self._changed:
                    self._changed.append(path)
                file.stat, file.is_refused = seen, False
        for path in self._files.keys() - found.keys():
            del self._files[path]
            self._gone.append(path)
        self._changed = [path for path in self._changed if path in self._files]
        self._next_scan = now + max(SCAN_SECONDS, _SCAN_SHARE * (self._clock() - now))

    def _has_changed(self, path: str, file: _FollowedFile, seen: _Stat) -> bool:
        """Return whether the driver lacks part of a file. Start over if the part that was sent is no longer there."""
        if file.stat is None:  # also sends an empty file
            return True
        inode, size, _ = seen
        if inode != file.stat[0] or size < file.sent or not self._still_has_what_was_sent(path, file):
            file.restart()
            return True
        return size > file.sent or file.is_refused

    def _still_has_what_was_sent(self, path: str, file: _FollowedFile) -> bool:
        compares_all = self._is_final or file.sent <= _SEAM_BYTES
        length, crc = (file.sent, file.crc) if compares_all else (file.seam, file.seam_crc)
        try:
            return _checksum(os.path.join(self.directory, path), file.sent - length, length) == crc
        except OSError:  # just removed or replaced, which sending it again handles
            return False

    def _cut(self) -> LogPiece | None:
        """Return the next piece of a changed file, or None."""
        if self._gone:
            return LogPiece(self._gone.pop(), data=None)
        while self._changed:
            path = self._changed.pop(0)
            offset = self._files[path].sent
            try:
                with _opened(os.path.join(self.directory, path)) as fd:
                    data = os.pread(fd, PIECE_BYTES, offset)
            except OSError:  # just removed, which the next scan notices
                continue
            if data or not offset:
                return LogPiece(path, offset, data)
        return None


def _files_below(directory: str) -> Iterator[tuple[str, _Stat]]:
    """Yield the path and metadata of every regular file. Links are not followed: they may lead out of the directory."""
    folders = [""]
    while folders:
        folder = folders.pop()
        with contextlib.suppress(OSError), os.scandir(os.path.join(directory, folder)) as entries:  # removed meanwhile
            for entry in entries:
                path = os.path.join(folder, entry.name)
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(path)
                    elif entry.is_file(follow_symlinks=False):
                        # Not entry.stat(): some file systems update it late while a file is being written.
                        found = os.stat(os.path.join(directory, path), follow_symlinks=False)
                        yield path, (found.st_ino, found.st_size, found.st_mtime_ns)


def _checksum(path: str, start: int, length: int) -> int:
    crc, end = 0, start + length
    with _opened(path) as fd:
        while start < end and (data := os.pread(fd, min(1 << 20, end - start), start)):
            crc, start = zlib.crc32(data, crc), start + len(data)
    return crc


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
