"""The library brings its own source to the executors.

Only the driver needs the library installed. Its sources (well under 200 kB) travel in the Spark task and are
imported from memory there, unless the very same sources are installed; so driver, agents and trainers can never
be of different versions, and nothing is written to an executor's disk for it.
"""

import functools
import json
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from . import _importer

PACKAGE = "spark_tensorflow_distributor"


@functools.cache
def own_sources() -> dict[str, str]:
    """This package's files, as a dict of relative path to text."""
    loader = globals().get("__loader__")
    modules: dict[str, tuple[str, bool, str]] | None = getattr(loader, "modules", None)
    if modules is not None:  # this copy was itself imported from memory
        return {path: text for text, _, path in modules.values()}
    return _importer.read_sources(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def importer_source() -> str:
    """The text of the importer, to be executed where the package cannot be imported yet."""
    return own_sources()["runtime/_importer.py"]


def spark_task(spec: bytes) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """The body of a run's Spark task, which becomes the agent.

    Args:
        spec: a pickled ``TaskSpec``.
    """
    return shipped("runtime.agent.task", "run_task", spec)


def shipped(module: str, name: str, *fixed: Any) -> Callable[[Iterator[Any]], Iterator[Any]]:
    """A function for Spark's Python workers, which calls one of this package there.

    It is a nested function that refers to nothing of this package, so that it is pickled by value.

    Args:
        module: the module of this package, such as ``"runtime.agent.task"``.
        name: a function in it, of ``(*fixed, batches)``, that gives an iterator.
        fixed: its first arguments; nothing whose class is this package's.
    """
    package = PACKAGE
    installer = importer_source()
    packed = zlib.compress(json.dumps(own_sources()).encode())

    def run_shipped(batches: Iterator[Any]) -> Iterator[Any]:
        import importlib
        import json
        import zlib

        namespace: dict[str, Any] = {"__name__": "_importer"}
        exec(compile(installer, "<spark_tensorflow_distributor>/runtime/_importer.py", "exec"), namespace)
        namespace["install"](package, json.loads(zlib.decompress(packed)))
        function = getattr(importlib.import_module(f"{package}.{module}"), name)
        yield from function(*fixed, batches)

    return run_shipped
