"""Passes on what Spark provides to a task's code: broadcast variables, accumulators, and the ``SparkFiles`` folder.

Spark sets these up in its own Python worker, where the agent runs. The training function runs in another process, so
the agent passes on where they are (:func:`carry_out`), and the trainer sets them up again (:func:`carry_in`). What the
function adds to accumulators returns with the worker's report, because Spark's own mechanism would also count failed
attempts.
"""

import base64
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from pyspark import Accumulator, AccumulatorParam, Broadcast

# Writes a pickled value to a file of the task, and returns its path.
WriteFile: TypeAlias = Callable[[bytes], str]


@dataclass(frozen=True)
class SparkObjects:
    """Where a worker's process finds what Spark has prepared.

    Attributes:
        files: The folder of ``SparkFiles``, with files added by ``SparkContext.addFile``; None if there is none.
        broadcasts: The file with the pickled value of each broadcast variable, by its id as text (JSON has no other
            keys).
    """

    files: str | None = None
    broadcasts: Mapping[str, str] = field(default_factory=dict)


# Broadcast variables of this trainer, by id; set by carry_in().
_broadcasts: "dict[int, Broadcast[Any]]" = {}


def carry_out(broadcasts: "Mapping[int, Broadcast[Any]]", write: WriteFile) -> SparkObjects:
    """Describe what Spark has prepared in this process, its own Python worker.

    Args:
        broadcasts: The program's broadcast variables by id, as Spark has unpickled them here.
        write: Saves a value that Spark has decrypted (``spark.io.encryption.enabled``) and of which no file is left.
    """
    from pyspark import SparkFiles

    paths = {}
    for number, broadcast in broadcasts.items():
        path = getattr(broadcast, "_path", None)
        paths[str(number)] = path if path is not None else write(pickle.dumps(broadcast.value))
    files = SparkFiles.getRootDirectory() if SparkFiles._is_running_on_worker else None
    return SparkObjects(files, paths)


def carry_in(objects: SparkObjects) -> None:
    """Set up in this process, a trainer, what :func:`carry_out` has described."""
    from pyspark import Broadcast, SparkFiles

    SparkFiles._root_directory = objects.files
    SparkFiles._is_running_on_worker = objects.files is not None
    _broadcasts.clear()
    for number, path in objects.broadcasts.items():
        _broadcasts[int(number)] = Broadcast(path=path)  # reads the file when its value is first used


def broadcast_id(broadcast: "Broadcast[Any]") -> int:
    """Return the id of a broadcast variable in the driver."""
    return int(broadcast._jbroadcast.id())


def broadcast_variable(number: int) -> "Broadcast[Any]":
    """Return a broadcast variable of the program; a pickled program refers to it by this call."""
    return _broadcasts[number]


def empty_accumulator(of: "Accumulator[Any]") -> "tuple[int, Any, AccumulatorParam[Any]]":
    """Return the arguments with which :func:`accumulator` makes an accumulator's counterpart on a worker."""
    return of.aid, of.accum_param.zero(of._value), of.accum_param


def accumulator(number: int, zero: Any, param: "AccumulatorParam[Any]") -> "Accumulator[Any]":
    """Return an accumulator of the program; a pickled program refers to it by this call."""
    from pyspark.accumulators import _deserialize_accumulator

    return _deserialize_accumulator(number, zero, param)


def accumulated(dumps: Callable[[Any], bytes]) -> str:
    """Return what this trainer has added to the program's accumulators, for :func:`add_accumulated`.

    Args:
        dumps: Pickles the values.

    Returns:
        A dict of ids and values, pickled, as base64; "" if the program has no accumulators.
    """
    from pyspark.accumulators import _accumulatorRegistry

    values = {number: each._value for number, each in _accumulatorRegistry.items()}
    return base64.b64encode(dumps(values)).decode() if values else ""


def add_accumulated(texts: Iterable[str]) -> None:
    """Add what the trainers have accumulated to the driver's accumulators.

    This unpickles the values: use it only for texts from senders that have proved that they know the launch's secret.

    Args:
        texts: The results of :func:`accumulated`.
    """
    from pyspark.accumulators import _accumulatorRegistry

    for text in filter(None, texts):
        for number, value in pickle.loads(base64.b64decode(text)).items():  # noqa: S301
            _accumulatorRegistry[number].add(value)
