"""What crosses between the driver, the agents and the trainers.

Three kinds of things cross:

* a :class:`TaskSpec`, from the driver to every agent, inside the Spark task;
* messages, on the sockets between driver and agent and between agent and trainer (see ``wire``);
* rows ``(rank, kind, seq, data)``, from the agents to the driver, through Spark: reports, and chunks of the result
  where the driver's channel could not take it.

Both ends always run the same source (see ``shipping``), so the formats carry no version of their own.
"""

import base64
import contextlib
import importlib.metadata
import io
import json
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .data.layout import FrameSpec
from .errors import WorkerFailure

# One row of the Spark job's output.
ROW_SCHEMA = "rank int, kind string, seq int, data binary"
CHUNK_BYTES = 1 << 20

# A worker of which nothing is heard for so long, while no other one makes a step, is gone: agents tell every two
# seconds that they live.
SILENT_SECONDS = 20.0

# Marks a failure record inside the text of a Spark error; see encode_failure.
_MARK = "spark_tensorflow_distributor-failure:"

# An exception that pickles to more than this is reported by its text alone.
_MAX_EXCEPTION_BYTES = 1 << 20
# A 20 kB text reaches the driver whole through Spark's own error, on classic and on Connect.
_MAX_ENCODED_BYTES = 16_000


@dataclass(frozen=True)
class CheckpointSpec:
    """What is kept of the training, so that a relaunch goes on with it.

    Attributes:
        folder: the runner's ``checkpoint_dir``, or None.
        at_driver: the driver keeps the checkpoints.
        every: the runner's ``checkpoint_every``.
        run: identifies the run.
        expected: names of those that the run is known to have saved to ``folder`` last.
    """

    folder: str | None = None
    at_driver: bool = False
    every: float | str = 30.0
    run: str = ""
    expected: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskSpec:
    """All that an agent has to know, the same for every rank.

    Attributes:
        attempt: 0 for the first launch; counts the restarts that ``max_restarts`` allows.
        world_size: number of Spark tasks, each with one worker.
        secret: key of the run, known to the driver and the agents alone.
        driver_addresses: ``(host, port)`` of the driver's channel, to be tried in this order.
        gone_means_dead: a driver that refuses connections is dead. So under Spark Connect, where the server goes on
            with a job whose client has died; classic Spark ends the task itself.
        payload: the pickled ``(train_fn, kwargs)`` or ``(script name, source, args)``.
        is_script: which of the two it is.
        gpus_by_rank: how many GPUs each rank takes of those that Spark dealt to its task; empty for CPU training.
        gpu_is_shared: several tasks share one GPU (``spark.task.resource.<name>.amount`` below 1).
        start_timeout: seconds until all workers have met.
        max_result_bytes: Spark's ``spark.driver.maxResultSize``; 0 for no limit.
        max_row_bytes: the largest result that may go through Spark's own rows, where the channel cannot take it:
            Spark holds several copies of it in the heap of the driver's JVM.
        warm_start: fork the trainer from a process that has imported TensorFlow already.
        warm_seconds: how long such a process is kept after its last use.
        submitted_at: when the driver submitted the job, seconds since the epoch.
        loopback: all workers run on the driver's own host (Spark's master is ``local``).
        echo: copy the trainer's output to the executor's stderr. Not where that is the driver's own, which shows the
            lines anyway.
        checkpoints: what is kept of the training.
        worker_ports: first and last plus one of the ports for TensorFlow; empty for any.
        frames: the DataFrames among the function's arguments.
        seed: of the order of their rows, where the user gives none; the same for all attempts of a run.
    """

    attempt: int
    world_size: int
    secret: bytes
    driver_addresses: tuple[tuple[str, int], ...]
    gone_means_dead: bool
    payload: bytes
    is_script: bool
    use_gpu: bool
    gpu_resource_name: str
    gpus_by_rank: tuple[int, ...]
    gpu_is_shared: bool
    use_custom_strategy: bool
    env: Mapping[str, str]
    start_timeout: float
    max_result_bytes: int
    max_row_bytes: int
    warm_start: bool
    warm_seconds: float
    submitted_at: float
    loopback: bool
    echo: bool
    checkpoints: CheckpointSpec
    worker_ports: tuple[int, ...] = ()
    frames: tuple[FrameSpec, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class WorkerReport:
    """What an agent tells of its worker when it ends. Times are seconds, sizes bytes; ``rendezvous`` is the way it
    met its peers, ``channel`` or ``allGather``; ``rows`` are its share, by DataFrame, and ``spooled_bytes``
    what they took on disk."""

    rank: int
    host: str
    partition: int
    pid: int = 0
    devices: tuple[str, ...] = ()
    threads: int = 0
    tensorflow: str = ""
    rendezvous: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_rss: int = 0
    rows: Mapping[str, int] = field(default_factory=dict)
    spooled_bytes: int = 0
    exit: str = ""
    dropped_lines: int = 0
    log_tail: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "WorkerReport":
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        for name in ("devices", "log_tail", "warnings"):
            known[name] = tuple(known.get(name, ()))
        return cls(**known)


def failure_record(
    rank: int,
    host: str,
    kind: str,
    message: str,
    *,
    error_type: str = "",
    traceback: str = "",
    pickled: str | None = None,
    place: Mapping[str, int] | None = None,
    log_tail: Sequence[str] = (),
) -> dict[str, Any]:
    """A worker's failure as a JSON object; ``pickled`` is what :func:`pickle_exception` made of its exception."""
    return {
        "rank": rank,
        "host": host,
        "kind": kind,
        "message": message,
        "error_type": error_type,
        "traceback": traceback,
        "pickled": pickled,
        "place": dict(place or {}),
        "log_tail": list(log_tail),
    }


def pickle_exception(error: BaseException, dumps: Callable[[Any], bytes] = pickle.dumps) -> str | None:
    """Base64 of the exception, pickled by ``dumps``; None where it does not pickle, or is larger than 1 MiB."""
    try:
        blob = dumps(error)
    except Exception:  # any class may refuse to be pickled, in any way: then its text has to do
        return None
    return base64.b64encode(blob).decode() if len(blob) <= _MAX_EXCEPTION_BYTES else None


def failure_from_record(record: Mapping[str, Any], seconds: float = 0.0) -> WorkerFailure:
    """The failure that a record describes, with its exception where that can be rebuilt here.

    Only for records whose sender has shown the run's secret, or that came through Spark: it unpickles.
    """
    names = {f.name for f in fields(WorkerFailure)} - {"exception", "log_tail", "seconds"}
    error = None
    if record.get("pickled"):
        try:
            error = _ExceptionUnpickler(io.BytesIO(base64.b64decode(record["pickled"]))).load()
        except Exception:  # the class is missing here, or cannot be rebuilt: its text has to do
            error = None
    return WorkerFailure(
        **{name: record[name] for name in names if name in record},
        log_tail=tuple(record.get("log_tail") or ()),
        exception=error if isinstance(error, BaseException) else None,
        seconds=seconds,
    )


class _ExceptionUnpickler(pickle.Unpickler):
    """Rebuilds an exception, but does not import TensorFlow for it: a driver that has not done so itself cannot be
    waiting for one of TensorFlow's exceptions, and would pay seconds and half a gigabyte."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in ("tensorflow", "keras", "tf_keras") and module not in sys.modules:
            raise pickle.UnpicklingError(f"{module} is not loaded here")
        return super().find_class(module, name)


def encode_failure(record: Mapping[str, Any]) -> str:
    """A text for a Spark task's own error, from which :func:`decode_failure` gets the record back.

    It is the only way to the driver where the driver's channel cannot be reached.
    """
    data = dict(record)
    for name, shorter in (("pickled", None), ("log_tail", []), ("traceback", data["traceback"][-4000:])):
        if len(json.dumps(data)) <= _MAX_ENCODED_BYTES:
            break
        data[name] = shorter
    data["message"] = data["message"][:4000]
    blob = base64.b64encode(json.dumps(data).encode()).decode()
    return f"rank {data['rank']} failed: {data['message'][:500]}\n{_MARK}{blob};"


def decode_failure(text: str) -> dict[str, Any] | None:
    """The failure record that a Spark error carries, or None."""
    start = text.find(_MARK)
    end = text.find(";", start)
    if start < 0 or end < 0:
        return None
    try:
        record: dict[str, Any] = json.loads(base64.b64decode(text[start + len(_MARK) : end]))
    except ValueError:
        return None
    return record


def chunks(data: memoryview) -> Iterator[memoryview]:
    """Cut ``data`` into pieces of 1 MiB, the last one shorter; nothing for empty data."""
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


def tensorflow_version() -> str:
    """The installed TensorFlow's version, without importing it; "" where there is none."""
    for name in ("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tf-nightly", "tf-nightly-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return ""
