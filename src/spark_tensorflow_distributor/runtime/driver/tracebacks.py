"""Formats remote tracebacks: keeps the user's frames and hides the library's. Pure."""

import re

from ..source_files import is_library_file

_SECTION = "Traceback (most recent call last):"
# The exception's name before its message, or only its module if the message begins with the class.
_NAME = re.compile(r"[\w.<>]+(: |\.)")
_FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line \d+')


def hide_library_frames(traceback: str) -> str:
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
    head, _, last = traceback.rstrip().removesuffix(message).rpartition("\n")
    is_repeated = (
        traceback.rstrip().endswith(message) and bool(head) and (not last or _NAME.fullmatch(last) is not None)
    )
    return head.rstrip() if is_repeated else traceback.rstrip()


def _shown(frames: list[list[str]]) -> list[str]:
    others = [frame for frame in frames if not ((match := _FRAME.match(frame[0])) and _is_hidden(match["file"]))]
    return [line for frame in others or frames for line in frame]


def _is_hidden(file: str) -> bool:
    # contextlib enters and leaves the library's context managers.
    return is_library_file(file) or file.endswith("/contextlib.py")
