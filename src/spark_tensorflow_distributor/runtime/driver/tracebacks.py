"""Formats remote tracebacks: keeps the user's frames and hides the library's. Pure."""

import re

from ..shipping import PACKAGE, own_sources

_SECTION = "Traceback (most recent call last):"
_FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line \d+')


def hide_own_frames(traceback: str) -> str:
    """Return a formatted traceback without the frames of this library, as Keras hides its own.

    Chained exceptions are filtered one by one. An exception that has only frames of the library keeps all of them.
    """
    lines: list[str] = []
    waiting: list[list[str]] | None = None  # the frames of the current exception
    for line in traceback.splitlines():
        if waiting is not None:
            if _FRAME.match(line):
                waiting.append([line])
                continue
            if waiting and line.startswith("  "):  # its source line, carets, or "[Previous line repeated ...]"
                waiting[-1].append(line)
                continue
            lines += _shown(waiting)
            waiting = None
        lines.append(line)
        if line == _SECTION:
            waiting = []
    return "\n".join(lines + _shown(waiting or []))


def without_message(traceback: str, message: str) -> str:
    """Return a formatted traceback without its last lines if they only repeat ``message``."""
    head = traceback.rstrip().removesuffix(message)
    return head.rstrip() if head.endswith("\n") else traceback.rstrip()


def is_own_file(file: str) -> bool:
    """Return whether the file name of a frame is one of this library's, installed or loaded from memory."""
    # Code that was loaded from memory is called "<package>/path", installed code ".../package/path".
    path = file.replace("\\", "/").replace(f"<{PACKAGE}>", f"/{PACKAGE}")
    _, found, tail = path.rpartition(f"/{PACKAGE}/")
    return bool(found) and tail in own_sources()


def _shown(frames: list[list[str]]) -> list[str]:
    others = [frame for frame in frames if not ((match := _FRAME.match(frame[0])) and is_own_file(match["file"]))]
    return [line for frame in others or frames for line in frame]
