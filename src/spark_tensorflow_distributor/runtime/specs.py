"""What crosses between the driver, the agents and the trainers.

Three kinds of things cross:

* a :class:`TaskSpec`, from the driver to every agent, inside the Spark task;
* messages, on the sockets between driver and agent and between agent and trainer (see ``wire``);
* rows ``(rank, kind, seq, data)``, from the agents to the driver, through Spark: reports, and chunks of the result
  where the driver's channel could not take it.

Both ends always run the same source (see ``shipping``), so the formats carry no version of their own.
"""

import contextlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..data.layout import FrameSpec
from ..resume.interval import DEFAULT_INTERVAL, CheckpointInterval

# One row of the Spark job's output.
ROW_SCHEMA = "rank int, kind string, seq int, data binary"

# A worker of which nothing is heard for so long, while no other one makes a step, is gone: agents tell every two
# seconds that they live.
SILENT_SECONDS = 20.0


@dataclass(frozen=True)
class CheckpointSpec:
    """What is kept of the training, so that a relaunch goes on with it.

    Attributes:
        folder: the runner's ``checkpoint_dir``, or None.
        at_driver: the driver keeps the checkpoints.
        interval: the runner's ``checkpoint_every``.
        run: identifies the run.
        expected: names of those that the run is known to have saved to ``folder`` last.
    """

    folder: str | None = None
    at_driver: bool = False
    interval: CheckpointInterval = DEFAULT_INTERVAL
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
        driver_is_client: a driver that refuses connections is dead. So under Spark Connect, where the server goes on
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
        log_to_executor: copy the trainer's output to the executor's stderr. Not where that is the driver's own, which
            shows the lines anyway.
        checkpoints: what is kept of the training.
        worker_ports: first and last plus one of the ports for TensorFlow; empty for any.
        frames: the DataFrames among the function's arguments.
        seed: of the order of their rows, where the user gives none; the same for all attempts of a run.
    """

    attempt: int
    world_size: int
    secret: bytes
    driver_addresses: tuple[tuple[str, int], ...]
    driver_is_client: bool
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
    log_to_executor: bool
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


def tensorflow_version() -> str:
    """The installed TensorFlow's version, without importing it; "" where there is none."""
    for name in ("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tf-nightly", "tf-nightly-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return ""
