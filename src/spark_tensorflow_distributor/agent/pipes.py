"""The pipes into which a trainer prints: to the driver, to the executor's own log, and the last lines to the report."""

import contextlib
import os
import select
import selectors
import sys
import time

from .link import DriverLink
from .output import LineSplitter, Tail, decode


class Pipes:
    """Of one trainer.

    Args:
        selector: tells when there is something to read.
        link: to the driver.
        tail: takes the last lines.
        echo: see ``TaskSpec``.

    Attributes:
        last_sign: when there was something last, by ``time.monotonic()``.
    """

    def __init__(self, selector: selectors.BaseSelector, link: DriverLink, tail: Tail, *, echo: bool) -> None:
        self._selector, self._link, self._tail, self._echo = selector, link, tail, echo
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
        elif self._echo or not self._link.is_open:
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
