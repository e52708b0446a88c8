"""What crosses between the driver, the agents and the trainers.

* A :class:`TaskSpec` goes from the driver to every agent, inside the Spark task.
* A :class:`TrainerSpec` goes from an agent to its trainer, as JSON, by way of the fork server.
* Messages go over the sockets between driver and agent and between agent and trainer (see ``wire``).
* Rows ``(rank, kind, seq, data)`` go from the agents to the driver through Spark: reports, and chunks of the result if
  the driver's channel could not take it.

Both ends always run the same source (see ``shipping``), so the formats carry no version of their own.
"""

import contextlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..config import RunnerConfig
from ..context import WorkerContext
from ..data.layout import FrameSpec
from ..resume.settings import CheckpointSettings

# One row of the Spark job's output.
ROW_SCHEMA = "rank int, kind string, seq int, data binary"

# A worker that has been silent for this long while no other one made a step is lost; agents send a sign of life every
# two seconds.
SILENT_SECONDS = 20.0


@dataclass(frozen=True)
class TrainerSettings:
    """The settings of a run that go from the driver to every trainer unchanged.

    Attributes:
        is_script: the program is a script, not a function.
        use_custom_strategy: the function builds its own strategy.
        gpu_is_shared: several tasks share one GPU (``spark.task.resource.<name>.amount`` below 1).
        max_result_bytes: Spark's ``spark.driver.maxResultSize``; 0 for no limit.
        seed: orders the rows of DataFrames if the user gives no seed; the same in all attempts of a run.
        checkpoints: where checkpoints are kept, and how often one is saved.
    """

    is_script: bool
    use_custom_strategy: bool
    gpu_is_shared: bool
    max_result_bytes: int
    seed: int
    checkpoints: CheckpointSettings


@dataclass(frozen=True)
class TaskSpec:
    """All that an agent needs to know, the same on every rank.

    Attributes:
        config: the runner's arguments, without the resource profile.
        trainer: the settings that the agent hands on to its trainer.
        attempt: 0 for the first launch; counts the restarts that ``max_restarts`` allows.
        world_size: number of Spark tasks, each with one worker.
        secret: key of the launch, known only to the driver and the agents.
        driver_addresses: ``(host, port)`` pairs of the driver's channel, in the order in which to try them.
        driver_is_client: a driver that refuses connections is dead. This holds under Spark Connect, whose server
            continues the job of a client that has died; classic Spark ends the tasks itself.
        payload: the pickled ``(train_fn, kwargs)`` or ``(script name, source, args)``.
        gpus_by_rank: how many of the GPUs that Spark assigned to its task each rank uses; empty for CPU training.
        max_row_bytes: the largest result that may go through Spark's own rows if the channel cannot take it. Spark
            holds several copies of it in the heap of the driver's JVM.
        warm_start: fork the trainer from a process that has already imported TensorFlow.
        warm_seconds: how long such a process is kept after its last use.
        submitted_at: when the driver submitted the job, in seconds since the epoch.
        loopback: all workers run on the driver's own host (Spark's master is ``local``).
        log_to_executor: copy the trainer's output to the executor's stderr. False if that is the driver's own stderr,
            which shows the lines anyway.
        worker_ports: first port for TensorFlow and last port plus one; empty for any port.
        frames: the DataFrames among the function's arguments.
    """

    config: RunnerConfig
    trainer: TrainerSettings
    attempt: int
    world_size: int
    secret: bytes
    driver_addresses: tuple[tuple[str, int], ...]
    driver_is_client: bool
    payload: bytes
    gpus_by_rank: tuple[int, ...]
    max_row_bytes: int
    warm_start: bool
    warm_seconds: float
    submitted_at: float
    loopback: bool
    log_to_executor: bool
    worker_ports: tuple[int, ...] = ()
    frames: tuple[FrameSpec, ...] = ()


@dataclass(frozen=True)
class TrainerSpec:
    """What an agent asks the fork server for: one trainer.

    Attributes:
        context: what the function can ask about its worker.
        settings: those of the run.
        host: this worker's host, as Spark names it.
        partition: number of this worker's partition of the stage.
        env: the trainer's whole environment.
        path: the trainer's ``sys.path``.
        argv: the trainer's ``sys.argv``.
        cwd: the trainer's working directory.
        barrier: state of Spark's barrier context (see ``barrier.carry_out``).
        threads: this worker's share of the host's cores.
        gpus: entries of CUDA_VISIBLE_DEVICES; empty for CPU training.
        has_data: rows of DataFrames will follow.
        checkpoint_names: names of the driver's checkpoints, whose files come with the request.
    """

    context: WorkerContext
    settings: TrainerSettings
    host: str
    partition: int
    env: Mapping[str, str]
    path: tuple[str, ...]
    argv: tuple[str, ...]
    cwd: str
    barrier: str
    threads: int
    gpus: tuple[str, ...]
    has_data: bool
    checkpoint_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class WorkerReport:
    """What an agent reports about its worker at the end.

    Attributes:
        rank: the worker's rank.
        host: its host, as Spark names it.
        partition: number of its partition of the stage; rank 0 has partition 0.
        pid: process id of the agent.
        devices: the GPUs that it used, or ``("CPU",)``.
        threads: its share of the host's cores.
        tensorflow: version of TensorFlow.
        rendezvous: how it met its peers, ``"channel"`` or ``"allGather"``.
        seconds: duration of each phase.
        peak_rss: the trainer's peak resident set size, in bytes.
        rows: rows of its shard, by DataFrame.
        spooled_bytes: size of these rows on disk.
        exit: how the trainer ended: ``"ok"``, or words such as ``"exit status 3"``.
        dropped_lines: log lines that were dropped because the driver could not keep up.
        log_tail: the last lines of output.
        warnings: what the user was warned about.
    """

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


def tensorflow_version() -> str:
    """Return the version of the installed TensorFlow without importing it; "" if there is none."""
    for name in ("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tf-nightly", "tf-nightly-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return ""
