"""What a trainer prints: cut into lines, and the last of them kept."""

from collections import deque

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
