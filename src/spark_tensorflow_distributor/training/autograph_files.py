"""Removes the files of code that TensorFlow's AutoGraph generates.

AutoGraph writes each function that it converts into a file in the temporary directory, loads it as a module, and
removes the file, but not the bytecode next to it, when the interpreter exits. A killed process removes nothing, so the
trainers of failed runs and Spark's Python workers, which leave dozens of files each, would fill a host's temporary
directory.
"""

import contextlib
import functools
import linecache
import os
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from .private_names import AUTOGRAPH_LOADER

_MARK = "_spark_tensorflow_keeps_no_file"

LoadSource = Callable[..., tuple[ModuleType, str]]


def keep_no_generated_files() -> None:
    """Remove AutoGraph's files as soon as they are loaded. TensorFlow must have been imported.

    Tracebacks and ``inspect`` then find the code in ``linecache``, as they do for doctests and notebooks.
    """
    loader = AUTOGRAPH_LOADER.loaded()
    load = getattr(loader, "load_source", None)
    if loader is not None and load is not None and not hasattr(load, _MARK):
        loader.load_source = _removing(load)  # type: ignore[attr-defined]


def _removing(load: LoadSource) -> LoadSource:
    lock = threading.Lock()

    @functools.wraps(load)
    def load_source(source: str, *args: Any, **kwargs: Any) -> tuple[ModuleType, str]:
        with lock:
            before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
            try:
                module, name = load(source, *args, **kwargs)
            finally:
                sys.dont_write_bytecode = before
        # Without a modification time, linecache does not look for the file again.
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        return module, name

    setattr(load_source, _MARK, True)
    return load_source
