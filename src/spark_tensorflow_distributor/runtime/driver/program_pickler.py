"""Pickles a program with cloudpickle, and collects what has to accompany it to the workers."""

import functools
import io
import linecache
import pickle
import types
from dataclasses import dataclass, field
from typing import Any

from ...data.driver_only import refuse_driver_only
from ...training.keras_pickle import reduce_keras
from .. import spark_objects
from ..source_files import is_users_file

# Enough for any program; if linecache holds more, it is generated code.
_MAX_SOURCE_CHARS = 4 << 20


@dataclass(frozen=True)
class PackedProgram:
    """A pickled program.

    Attributes:
        payload: Two consecutive pickles: the source texts, by file name; and ``(train_fn, kwargs)`` or
            ``(script name, source, args)``.
        broadcasts: The broadcast variables that the program uses, by id.
        uses_accumulators: Whether the program uses accumulators.
    """

    payload: bytes
    broadcasts: dict[int, Any] = field(default_factory=dict)
    uses_accumulators: bool = False


def pack(program: object) -> PackedProgram:
    """Pickle a program; raises whatever its objects raise when they are pickled."""
    file = io.BytesIO()
    pickler = _pickler_class()(file)
    pickler.dump(program)
    payload = pickle.dumps(_sources(pickler.files)) + file.getvalue()
    return PackedProgram(payload, pickler.broadcasts, pickler.uses_accumulators)


def _sources(files: set[str]) -> dict[str, str]:
    """Return the texts of the source files that the executors may not have, such as a notebook's cells.

    Tracebacks on the workers then show source lines, and AutoGraph finds the functions that it converts.
    """
    sources: dict[str, str] = {}
    size = 0
    for name in sorted(files):
        linecache.checkcache(name)
        text = "".join(linecache.getlines(name))
        size += len(text)
        if text and size <= _MAX_SOURCE_CHARS:
            sources[name] = text
    return sources


@functools.cache
def _pickler_class() -> Any:
    from pyspark import cloudpickle  # this module can be imported without PySpark

    class ProgramPickler(cloudpickle.Pickler):
        """Replaces Spark's shared variables with references, and notes the files of functions that travel by value."""

        def __init__(self, file: io.BytesIO) -> None:
            super().__init__(file)  # type: ignore[no-untyped-call]
            self.files: set[str] = set()
            self.broadcasts: dict[int, Any] = {}
            self.uses_accumulators = False

        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, types.CodeType):
                if is_users_file(obj.co_filename):
                    self.files.add(obj.co_filename)
            elif is_broadcast(obj):
                number = spark_objects.broadcast_id(obj)
                self.broadcasts[number] = obj
                return spark_objects.broadcast_variable, (number,)
            elif is_accumulator(obj):
                self.uses_accumulators = True
                return spark_objects.accumulator, spark_objects.empty_accumulator(obj)
            elif (reduced := reduce_keras(obj)) is not None:
                return reduced
            refuse_driver_only(obj)
            return super().reducer_override(obj)  # type: ignore[no-untyped-call]

    return ProgramPickler


def is_broadcast(value: object) -> bool:
    """Return whether the value is a broadcast variable of classic Spark."""
    cls = type(value)
    return cls.__name__ == "Broadcast" and cls.__module__ in ("pyspark.broadcast", "pyspark.core.broadcast")


def is_accumulator(value: object) -> bool:
    """Return whether the value is an accumulator of classic Spark."""
    cls = type(value)
    return cls.__name__ == "Accumulator" and cls.__module__ == "pyspark.accumulators"
