"""Runs the text of a Python script as ``python script.py args`` would."""

import os
import sys
import types
from collections.abc import Callable, Sequence


def script_call(name: str, source: str, args: Sequence[str]) -> Callable[[], None]:
    """A function that runs the script.

    Args:
        name: the script's path as it was given to ``run``; shown in tracebacks, and ``sys.argv[0]``.
        source: its text, read at the driver: the file need not be on the executors.
        args: its command line.
    """

    def call() -> None:
        import linecache

        # Tracebacks then show the script's lines.
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        module = types.ModuleType("__main__")
        module.__file__ = name
        module.__dict__["__builtins__"] = __builtins__
        code = compile(source, name, "exec")
        saved = sys.argv[:], sys.modules.get("__main__"), sys.path[:]
        sys.argv[:] = [name, *args]
        sys.modules["__main__"] = module
        folder = os.path.dirname(os.path.abspath(name))
        if os.path.isdir(folder):  # modules beside the script, where the executors see that folder
            sys.path.insert(0, folder)
        try:
            exec(code, module.__dict__)
        finally:
            sys.argv[:], main, sys.path[:] = saved
            if main is not None:
                sys.modules["__main__"] = main

    return call
