"""Distinguishes the user's source files from those of libraries, by the file names of stack frames. Pure."""

import re

from .shipping import PACKAGE, own_sources

_LIBRARY = re.compile(
    r"^.*/(?:site|dist)-packages/|^.*/lib(?:64)?/(?:python|pypy)3(?:\.\d+t?)?/|^.*/(?=pyspark\.zip/)|^(?=<frozen )"
    r"|^.*/(?=__autograph_generated_file)"
)


def is_own_file(file: str) -> bool:
    """Return whether the file name of a frame is one of this library's, installed or loaded from memory."""
    # Code that was loaded from memory is named "<package>/path", installed code ".../package/path".
    path = file.replace("\\", "/").replace(f"<{PACKAGE}>", f"/{PACKAGE}")
    _, found, tail = path.rpartition(f"/{PACKAGE}/")
    return bool(found) and tail in own_sources()


def is_users_file(file: str) -> bool:
    """Return whether the file name of a frame is one of the user's program."""
    # "_importer.py" is the import hook, which runs before the package can be imported.
    return file != "_importer.py" and not is_own_file(file) and not _LIBRARY.match(file)


def without_library_path(file: str) -> str:
    """Return the name of a library's file, relative to where libraries are installed."""
    return _LIBRARY.sub("", file)
