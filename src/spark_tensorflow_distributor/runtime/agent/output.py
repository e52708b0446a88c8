"""What a trainer prints: cut into lines, and the last of them kept."""

import contextlib
import os
import select
import selectors
import sys
import time
from collections import deque

from .link import DriverLink

# A line longer than this is passed on in pieces: a worker that never prints a newline must not fill the memory.
_LONGEST_LINE = 8192


class LineSplitter:
    """Cuts a stream of bytes into lines.

    A carriage return, as progress bars print it, starts the line again: what stands at the newline is passed on.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Add what was read; returns the lines that are complete by now, without their newlines."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) > _LONGEST_LINE:
            lines.append(self._rest[:_LONGEST_LINE])
            self._rest = self._rest[_LONGEST_LINE:]
        return [_last_state(line) for line in lines]

    def close(self) -> list[bytes]:
        """The last line, if the stream ended without a newline."""
        rest, self._rest = self._rest, b""
        return [_last_state(rest)] if rest else []


def _last_state(line: bytes) -> bytes:
    return line.rstrip(b"\r").rsplit(b"\r", 1)[-1]


class Tail:
    """The last lines of a worker's output, for its report."""

    def __init__(self, lines: int = 40, longest: int = 500) -> None:
        self._lines: deque[str] = deque(maxlen=lines)
        self._longest = longest

    def add(self, line: bytes) -> None:
        self._lines.append(decode(line[: self._longest]))

    def get(self) -> tuple[str, ...]:
        return tuple(self._lines)


def decode(line: bytes) -> str:
    """Text of any encoding: what is not UTF-8 is shown as escapes, and never raises."""
    return line.decode("utf-8", errors="backslashreplace")


class Pipes:
    """Of one trainer.

    Args:
        selector: tells when there is something to read.
        link: to the driver.
        tail: takes the last lines.
        log_to_executor: see ``TaskSpec``.

    Attributes:
        last_sign: when there was something last, by ``time.monotonic()``.
    """

    def __init__(
        self, selector: selectors.BaseSelector, link: DriverLink, tail: Tail, *, log_to_executor: bool
    ) -> None:
        self._selector, self._link, self._tail, self._log_to_executor = selector, link, tail, log_to_executor
        self._splitters: dict[int, tuple[str, LineSplitter]] = {}
        self.last_sign = time.monotonic()

    def open(self, name: str) -> int:
        """A new pipe; returns the end to write to."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        self._splitters[read] = (name, LineSplitter())
        self._selector.register(read, selectors.EVENT_READ, self._on_output)
        return write

    def _on_output(self, fd: int) -> None:
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return
        self.last_sign = time.monotonic()
        name, splitter = self._splitters[fd]
        if not data:
            self._selector.unregister(fd)
            os.close(fd)
            del self._splitters[fd]
        elif self._log_to_executor or not self._link.is_open:
            # The executor's own log has everything, as it came.
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.buffer.write(data)
                sys.stderr.buffer.flush()
        lines = splitter.feed(data) if data else splitter.close()
        for line in lines:
            self._tail.add(line)
        if lines:
            self._link.send_lines(name, [decode(line) for line in lines])

    def drain(self) -> None:
        """Read what is in the pipes, without waiting for who may still hold them open."""
        end = time.monotonic() + 1.0
        for fd in list(self._splitters):
            while fd in self._splitters and _readable(fd) and time.monotonic() < end:
                self._on_output(fd)

    def close(self) -> None:
        for fd in self._splitters:
            os.close(fd)
        self._splitters.clear()


def _readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])
