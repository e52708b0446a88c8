"""Runs the text of a Python script as ``python script.py args`` would."""

import os
import sys
import types
from collections.abc import Callable, Sequence

from .sources import keep_sources


def script_call(name: str, source: str, args: Sequence[str]) -> Callable[[], None]:
    """Return a function that runs a script.

    Args:
        name: The path that was passed to ``run``, for tracebacks and ``sys.argv[0]``.
        source: The script's text, which the driver has read, because the executors need not have the file.
        args: Its command-line arguments.
    """

    def call() -> None:
        keep_sources({name: source})
        module = types.ModuleType("__main__")
        module.__file__ = name
        module.__dict__["__builtins__"] = __builtins__
        code = compile(source, name, "exec")
        saved = sys.argv[:], sys.modules.get("__main__"), sys.path[:]
        sys.argv[:] = [name, *args]
        sys.modules["__main__"] = module
        folder = os.path.dirname(os.path.abspath(name))
        if os.path.isdir(folder):  # for modules next to the script, if the executors share that folder
            sys.path.insert(0, folder)
        try:
            # Running the user's script is what a trainer is for.
            exec(code, module.__dict__)  # noqa: S102
        finally:
            sys.argv[:], main, sys.path[:] = saved
            if main is not None:
                sys.modules["__main__"] = main

    return call
