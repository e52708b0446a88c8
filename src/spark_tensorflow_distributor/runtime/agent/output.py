"""Splits a trainer's output into lines, forwards them, and keeps the last ones."""

import contextlib
import os
import select
import selectors
import sys
import time
from collections import deque

from .link import DriverLink
from .noise import is_noise

# Longer lines are forwarded in pieces, so that a worker that never prints a newline does not fill memory.
_MAX_LINE_BYTES = 8192


class LineSplitter:
    """Splits a stream of bytes into lines.

    A carriage return, as in progress bars, starts the line over: only the text after the last one is kept. A line of
    more than 8 KiB is split between UTF-8 characters.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Add received bytes; return the lines that are now complete, without their newlines."""
        *complete, rest = (self._rest + data).split(b"\n")
        lines = [piece for line in complete for piece in _pieces(_final_text(line))]
        *full, self._rest = _pieces(rest)
        return lines + [_final_text(piece) for piece in full]

    def close(self) -> list[bytes]:
        """Return the last line if the stream ended without a newline."""
        rest, self._rest = self._rest, b""
        return [_final_text(rest)] if rest else []


def _pieces(line: bytes) -> list[bytes]:
    pieces, start = [], 0
    while len(line) - start > _MAX_LINE_BYTES:
        end = start + _MAX_LINE_BYTES
        # The other bytes of a character are 0b10xxxxxx, at most three.
        end -= next((back for back in range(4) if line[end - back] & 0xC0 != 0x80), 0)
        pieces.append(line[start:end])
        start = end
    return [*pieces, line[start:]]


def _final_text(line: bytes) -> bytes:
    return line.rstrip(b"\r").rsplit(b"\r", 1)[-1]


class Tail:
    """Keeps the last lines of a worker's output for its report."""

    def __init__(self, max_lines: int = 40, max_bytes: int = 500) -> None:
        self._lines: deque[str] = deque(maxlen=max_lines)
        self._max_bytes = max_bytes

    def add(self, line: bytes) -> None:
        self._lines.append(decode(line[: self._max_bytes]))

    def get(self) -> tuple[str, ...]:
        return tuple(self._lines)


def decode(line: bytes) -> str:
    """Decode text of any encoding; bytes that are not UTF-8 become escapes."""
    return line.decode("utf-8", errors="backslashreplace")


class OutputPipes:
    """The pipes through which a trainer prints.

    Args:
        selector: The event loop's selector.
        link: Receives the lines.
        tail: Keeps the last lines.
        log_to_executor: Whether to copy the output to the executor's stderr.
        has_gpus: Whether the worker trains on GPUs.

    Attributes:
        last_output: When the trainer last printed, by ``time.monotonic()``.
    """

    def __init__(
        self, selector: selectors.BaseSelector, link: DriverLink, tail: Tail, *, log_to_executor: bool, has_gpus: bool
    ) -> None:
        self._selector, self._link, self._tail = selector, link, tail
        self._log_to_executor, self._has_gpus = log_to_executor, has_gpus
        self._splitters: dict[int, tuple[str, LineSplitter]] = {}
        self.last_output = time.monotonic()

    def open(self, stream: str) -> int:
        """Open a pipe; return the descriptor to write to."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        self._splitters[read] = (stream, LineSplitter())
        self._selector.register(read, selectors.EVENT_READ, self._on_output)
        return write

    def _on_output(self, fd: int) -> None:
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        self.last_output = time.monotonic()
        stream, splitter = self._splitters[fd]
        if not data:
            self._selector.unregister(fd)
            os.close(fd)
            del self._splitters[fd]
        elif self._log_to_executor or not self._link.is_open:
            # The executor's log gets the output unchanged.
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.buffer.write(data)
                sys.stderr.buffer.flush()
        lines = splitter.feed(data) if data else splitter.close()
        lines = [line for line in lines if not (stream == "stderr" and is_noise(line, has_gpus=self._has_gpus))]
        for line in lines:
            self._tail.add(line)
        if lines:
            self._link.send_lines(stream, [decode(line) for line in lines])

    def drain(self) -> None:
        """Read what is left in the pipes, for up to a second, even if other processes still hold them open."""
        end = time.monotonic() + 1.0
        for fd in list(self._splitters):
            while fd in self._splitters and _is_readable(fd) and time.monotonic() < end:
                self._on_output(fd)

    def close(self) -> None:
        for fd in self._splitters:
            os.close(fd)
        self._splitters.clear()


def _is_readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])
