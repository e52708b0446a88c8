"""Finds the line of the user's program that is being executed."""

import linecache
import sys
import threading
import zlib
from collections.abc import Iterator
from types import FrameType

from ..source_files import is_users_file


def user_line() -> str:
    """Return the innermost line of the user's code in the main thread; "" if there is none."""
    for frame in _user_frames(sys._current_frames().get(threading.main_thread().ident or 0)):
        code = frame.f_code
        source = linecache.getline(code.co_filename, frame.f_lineno, frame.f_globals).strip()
        return f"{code.co_name} ({code.co_filename}, line {frame.f_lineno})" + (f": {source}" if source else "")
    return ""


def user_stack() -> int:
    """Return a number that is equal on all workers whose calling thread executes the same lines of the program."""
    frames = _user_frames(sys._getframe(1))
    return zlib.crc32(" ".join(f"{frame.f_code.co_name} {frame.f_lineno}" for frame in frames).encode())


def _user_frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield the frames of the user's code, the innermost first."""
    while frame is not None:
        name = frame.f_code.co_filename
        if is_users_file(name) and name != "<string>":  # the trainer's bootstrap code, `python -c`
            yield frame
        frame = frame.f_back
