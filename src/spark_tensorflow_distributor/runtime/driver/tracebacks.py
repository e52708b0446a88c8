"""Formats remote tracebacks: keeps the user's frames and hides the library's. Pure."""

import re

from ..shipping import PACKAGE
from ..source_files import is_library_file

_SECTION = "Traceback (most recent call last):"
# The exception's name before its message, or only its module if the message begins with the class.
_NAME = re.compile(r"[\w.<>]+(: |\.)")
_FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line \d+')
_OWN_ERROR = f"{PACKAGE}.errors."
# What Python prints between two exceptions.
_LINK = re.compile(r"\n\n(?:The above exception was the direct cause|During handling of the above exception)[^\n]*:$")


def shown_traceback(traceback: str, message: str) -> str:
    """Return the part of a worker's traceback to show with its message, ``""`` if that would add nothing.

    Args:
        traceback: The formatted traceback.
        message: The message of the failure.
    """
    return without_message(hide_library_frames(traceback), message)


def hide_library_frames(traceback: str) -> str:
    """Return a formatted traceback without the frames of this library, as Keras hides its own.

    Chained exceptions are filtered one by one. If an exception has only frames of the library, its class decides: the
    library's own errors explain themselves and lose them all; any other error may be a fault of the library and keeps
    them.
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
            lines += _section(waiting, line)
            waiting = None
        if line == _SECTION:
            waiting = []
        else:
            lines.append(line)
    return "\n".join(lines + ([] if waiting is None else _section(waiting, "")))


def without_message(traceback: str, message: str) -> str:
    """Return a formatted traceback without its last lines if they only repeat ``message``."""
    head, _, last = traceback.rstrip().removesuffix(message).rpartition("\n")
    is_repeated = (
        traceback.rstrip().endswith(message)
        and (bool(head) or f"{last}{message}".startswith(_OWN_ERROR))  # the class of any other exception is news
        and (not last or _NAME.fullmatch(last) is not None)
    )
    return _LINK.sub("", head.rstrip()) if is_repeated else traceback.rstrip()


def _section(frames: list[list[str]], error: str) -> list[str]:
    """Return the lines to show before those of an exception.

    Args:
        frames: The lines of each frame.
        error: The first line of the exception.
    """
    others = [frame for frame in frames if not ((match := _FRAME.match(frame[0])) and _is_hidden(match["file"]))]
    if not others and error.startswith(_OWN_ERROR):
        return []
    return [_SECTION, *(line for frame in others or frames for line in frame)]


def _is_hidden(file: str) -> bool:
    # contextlib enters and leaves the library's context managers.
    return is_library_file(file) or file.endswith("/contextlib.py")
