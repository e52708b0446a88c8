"""Distinguishes the user's source files from those of libraries, by the file names of stack frames. Pure."""

import re

from .shipping import PACKAGE, library_sources

_INSTALLED = re.compile(
    r"^.*/(?:site|dist)-packages/|^.*/lib(?:64)?/(?:python|pypy)3(?:\.\d+t?)?/|^.*/(?=pyspark\.zip/)|^(?=<frozen )"
    r"|^.*/(?=__autograph_generated_file)"
)


def is_library_file(file: str) -> bool:
    """Return whether the file name of a frame is one of this library's, installed or loaded from memory."""
    # Code that was loaded from memory is named "<package>/path", installed code ".../package/path".
    path = file.replace("\\", "/").replace(f"<{PACKAGE}>", f"/{PACKAGE}")
    _, found, tail = path.rpartition(f"/{PACKAGE}/")
    return bool(found) and tail in library_sources()


def is_users_file(file: str) -> bool:
    """Return whether the file name of a frame is one of the user's program."""
    # "_importer.py" is the import hook, which runs before the package can be imported.
    return file != "_importer.py" and not is_library_file(file) and not _INSTALLED.match(file)


def without_install_path(file: str) -> str:
    """Return the name of a library's file, relative to where libraries are installed."""
    return _INSTALLED.sub("", file)
