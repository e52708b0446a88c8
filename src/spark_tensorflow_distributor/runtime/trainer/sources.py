"""Provides source texts of the user's program that this host may not have, such as a notebook's cells."""

import linecache
from collections.abc import Mapping


def keep_sources(sources: Mapping[str, str]) -> None:
    """Make tracebacks and ``inspect.getsource`` find these texts by their file names.

    They take precedence over files of the same names on this host, which may differ from those on the driver.
    """
    for name, text in sources.items():
        # Without a modification time, linecache does not look for the file.
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
