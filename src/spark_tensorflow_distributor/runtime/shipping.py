"""Ships the library's own source to the executors.

Only the driver needs the library installed. Its sources travel compressed in the Spark task and are imported from
memory there, unless exactly the same sources are installed. Driver, agents and trainers can therefore never run
different versions, and nothing is written to an executor's disk.
"""

import functools
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from . import _importer

if TYPE_CHECKING:
    import pyarrow as pa

# A function for DataFrame.mapInArrow.
BatchFunction: TypeAlias = "Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]"

PACKAGE = "spark_tensorflow_distributor"


@functools.cache
def library_sources() -> dict[str, str]:
    """Return this package's source files as a dict of relative path to text."""
    loader = globals().get("__loader__")
    modules: dict[str, tuple[str, bool, str]] | None = getattr(loader, "modules", None)
    if modules is not None:  # this copy was itself imported from memory
        return {path: text for text, _, path in modules.values()}
    return _importer.read_sources(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@functools.cache
def _packed_sources() -> bytes:
    return zlib.compress(json.dumps(library_sources()).encode())


def importer_source() -> str:
    """Return the text of the importer, to be executed in processes that cannot import the package yet."""
    return library_sources()["runtime/_importer.py"]


def spark_task(spec: bytes, broadcasts: Mapping[int, object] | None = None) -> BatchFunction:
    """Return the body of a run's Spark task, which becomes the agent.

    Args:
        spec: A pickled ``TaskSpec``.
        broadcasts: The program's broadcast variables by id. The task refers to them, so that Spark sends them.
    """
    return shipped("runtime.agent.task", "run_task", spec, dict(broadcasts or {}))


def shipped(module: str, name: str, *fixed: object) -> BatchFunction:
    """Return a function for Spark's Python workers that calls a function of this package there.

    The result is a nested function that refers to nothing in this package, so that it is pickled by value.

    Args:
        module: The module within this package, such as ``"runtime.agent.task"``.
        name: The name of a function in it that takes ``(*fixed, batches)`` and returns an iterator.
        fixed: The first arguments; their classes must not be this package's.
    """
    package = PACKAGE
    installer = importer_source()
    packed = _packed_sources()

    def run_shipped(batches: "Iterator[pa.RecordBatch]") -> "Iterator[pa.RecordBatch]":
        import importlib
        import json
        import zlib

        namespace: dict[str, Any] = {"__name__": "_importer"}
        # The library's own source, from the driver.
        code = compile(installer, "<spark_tensorflow_distributor>/runtime/_importer.py", "exec")
        exec(code, namespace)  # noqa: S102
        namespace["install"](package, json.loads(zlib.decompress(packed)))
        function = getattr(importlib.import_module(f"{package}.{module}"), name)
        yield from function(*fixed, batches)

    return run_shipped
