"""Where TensorFlow's AutoGraph puts the code that it generates: into no file that could stay behind.

It writes each function that it converts into a file of its own in the temporary directory, loads that as a module, and
removes the file, but not the bytecode beside it, when the interpreter exits. A process that is killed has no such exit:
with a few dozen files from each trainer of a failed run, and from each of Spark's Python workers, a host's temporary
directory would fill up.
"""

import contextlib
import functools
import linecache
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

_MARK = "_spark_tensorflow_keeps_no_file"


def keep_no_generated_files() -> None:
    """Have AutoGraph's files removed as soon as they are loaded. TensorFlow has been imported.

    Tracebacks and ``inspect`` find the code in ``linecache`` from then on, as that of doctests or notebooks.
    """
    loader = sys.modules.get("tensorflow.python.autograph.pyct.loader")
    load = getattr(loader, "load_source", None)  # TensorFlow's own affair, which it may change
    if load is not None and not hasattr(load, _MARK):
        loader.load_source = _removing(load)  # type: ignore[union-attr]


def _removing(load: Callable[..., tuple[Any, str]]) -> Callable[..., tuple[Any, str]]:
    lock = threading.Lock()

    @functools.wraps(load)
    def load_source(source: str, *args: Any, **kwargs: Any) -> tuple[Any, str]:
        with lock:
            before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
            try:
                module, name = load(source, *args, **kwargs)
            finally:
                sys.dont_write_bytecode = before
        # Without a time of change: then linecache does not look for the file again.
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        return module, name

    setattr(load_source, _MARK, True)
    return load_source
