"""The data that the driver, the agents and the trainers exchange.

* A :class:`TaskSpec` goes from the driver to every agent, inside the Spark task.
* A :class:`TrainerSpec` goes from an agent to its trainer, as JSON, through the fork server.
* Messages go over the sockets between driver and agent and between agent and trainer (see ``wire``).
* Rows ``(rank, kind, seq, data)`` go from the agents to the driver through Spark: reports, and chunks of the result if
  the driver's channel could not take it.

Both ends always run the same source (see ``shipping``), so the formats need no version.
"""

import contextlib
import importlib.metadata
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..config import RunnerConfig
from ..context import WorkerContext
from ..data.layout import FrameSpec
from ..process_group.spec import GroupSpec
from ..resume.settings import CheckpointSettings
from ..transport.sealing import Protection
from .spark_objects import SparkObjects
from .spark_settings import SparkSettings

# One row of the Spark job's output.
ROW_SCHEMA = "rank int, kind string, seq int, data binary"

# A worker that has been silent for this long, while no other worker completed a step, is lost.
SILENT_SECONDS = 20.0
# A worker without a connection to the driver waits this long for it before it decides by itself how to make a call. The
# driver waits equally long for the worker.
AWAY_SECONDS = 10.0


def heartbeat_seconds(world_size: int) -> float:
    """Return how often an agent sends a heartbeat; less often in large groups, because the driver reads all of them."""
    return min(5.0, max(2.0, world_size / 512))


def line_window(world_size: int) -> int:
    """Return how many characters of output an agent may send before the driver has shown them.

    All agents together may fill about 64 MiB of the driver's memory.
    """
    return min(256 << 10, max(16 << 10, (64 << 20) // world_size))


@dataclass(frozen=True)
class RunPlan:
    """Describes what to launch; made from the runner's arguments and the facts about the cluster.

    Attributes:
        num_tasks: Number of Spark tasks, each with one worker.
        gpus_by_rank: Number of GPUs that each rank uses; empty for CPU training.
        gpu_is_shared: Whether several tasks share one GPU.
        uses_sockets: Whether the workers form a process group, instead of using TensorFlow's own runtime.
        warnings: Messages to show to the user before the launch.
        protection: How traffic between hosts is protected.
        settings: The settings in Spark's configuration.
    """

    num_tasks: int
    gpus_by_rank: tuple[int, ...] = ()
    gpu_is_shared: bool = False
    uses_sockets: bool = False
    warnings: tuple[str, ...] = ()
    protection: Protection = "light"
    settings: SparkSettings = field(default_factory=SparkSettings)


@dataclass(frozen=True)
class TaskSpec:
    """Everything that an agent needs to know, the same on every rank.

    Attributes:
        config: The runner's arguments, without the resource profile and ``py_modules``.
        plan: What is launched.
        attempt: 0 for the first launch; counts the restarts that ``max_restarts`` allows.
        secret: The launch's secret, known only to the driver and the agents.
        driver_addresses: ``(host, port)`` pairs of the driver's channel, in the order in which to try them.
        driver_is_client: Whether a driver that refuses connections counts as dead: under Spark Connect, whose server
            continues the job of a client that has died. Classic Spark ends the tasks itself.
        payload: The program; see ``driver.program_pickler.PackedProgram``.
        is_script: Whether the program is a script, not a function.
        seed: Determines the order of rows and of shuffles if the user gives no seed; the same in all attempts of a run.
        checkpoints: Where checkpoints are kept, and how often one is saved.
        has_callbacks: Whether the run has callbacks on the driver, which may end training after any epoch.
        max_row_bytes: The largest result that may go through Spark's own rows if the channel cannot take it. Spark
            holds several copies of it in the heap of the driver's JVM.
        submitted_at: When the driver submitted the job, in seconds since the epoch.
        is_local: Whether all workers run on the driver's own host (Spark's master is ``local``).
        frames: The DataFrames among the function's arguments.
        modules: A zip archive of the caller's own modules; empty if there are none.
    """

    config: RunnerConfig
    plan: RunPlan
    attempt: int
    secret: bytes = field(repr=False)
    driver_addresses: tuple[tuple[str, int], ...]
    driver_is_client: bool
    payload: bytes = field(repr=False)
    is_script: bool
    seed: int
    checkpoints: CheckpointSettings
    has_callbacks: bool
    max_row_bytes: int
    submitted_at: float
    is_local: bool
    frames: tuple[FrameSpec, ...] = ()
    modules: bytes = b""

    @property
    def world_size(self) -> int:
        """Number of Spark tasks, each with one worker."""
        return self.plan.num_tasks

    @property
    def filters_port(self) -> bool:
        """Whether TensorFlow opens ports, and only the group's hosts should reach them."""
        return self.plan.settings.port_filter and not self.plan.uses_sockets and sys.platform.startswith("linux")

    def trainer_settings(self, *, at_driver: bool) -> "TrainerSettings":
        """Return the part of this that a trainer needs.

        Args:
            at_driver: Whether the driver takes this worker's checkpoints.
        """
        return TrainerSettings(
            is_script=self.is_script,
            use_custom_strategy=self.config.use_custom_strategy,
            gpu_is_shared=self.plan.gpu_is_shared,
            uses_sockets=self.plan.uses_sockets,
            gradient_compression=self.config.gradient_compression,
            start_timeout=self.config.start_timeout,
            max_result_bytes=self.plan.settings.max_result_bytes,
            seed=self.seed,
            checkpoints=replace(self.checkpoints, at_driver=at_driver),
            has_callbacks=self.has_callbacks,
            closes_port=self.plan.settings.closes_port,
        )


@dataclass(frozen=True)
class TrainerSettings:
    """The settings of a run that an agent passes to its trainer.

    Attributes:
        is_script, seed, has_callbacks: See :class:`TaskSpec`.
        use_custom_strategy, gradient_compression, start_timeout: See :class:`~..config.RunnerConfig`.
        gpu_is_shared, uses_sockets: See :class:`RunPlan`.
        max_result_bytes, closes_port: See :class:`~.spark_settings.SparkSettings`.
        checkpoints: Where checkpoints are kept, and how often one is saved.
    """

    is_script: bool
    use_custom_strategy: bool
    gpu_is_shared: bool
    uses_sockets: bool
    gradient_compression: str | None
    start_timeout: float
    max_result_bytes: int
    seed: int
    checkpoints: CheckpointSettings
    has_callbacks: bool = False
    closes_port: bool = False


@dataclass(frozen=True)
class TrainerSpec:
    """Describes one trainer, for the fork server.

    Attributes:
        context: The worker's context, for ``get_context``.
        settings: The settings of the run.
        host: The worker's host, as Spark names it.
        partition: Number of the worker's partition of the stage.
        env: The trainer's whole environment.
        path: The trainer's ``sys.path``.
        argv: The trainer's ``sys.argv``.
        cwd: The trainer's working directory.
        barrier: State of Spark's barrier context (see ``barrier.carry_out``).
        spark_objects: What Spark has prepared for the program.
        threads: The worker's share of the host's cores.
        gpus: Entries of CUDA_VISIBLE_DEVICES; empty for CPU training.
        has_data: Whether rows of DataFrames will follow.
        group: The process group of the workers; None if there is none.
        peer_addresses: The addresses from which TensorFlow's port accepts connections; empty for any.
        checkpoint_names: Names of the driver's checkpoints, whose files follow the ``forkserver.FD_NAMES``.
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
    spark_objects: SparkObjects
    threads: int
    gpus: tuple[str, ...]
    has_data: bool
    group: GroupSpec | None = None
    peer_addresses: tuple[str, ...] = ()
    checkpoint_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class WorkerReport:
    """What an agent reports about its worker at the end.

    Attributes:
        rank: The worker's rank.
        host: Its host, as Spark names it.
        partition: Number of its partition of the stage; rank 0 has partition 0.
        pid: Process id of the agent.
        devices: The GPUs that it used, or ``("CPU",)``.
        threads: Its share of the host's cores.
        tensorflow: Version of TensorFlow.
        rendezvous: How it joined its peers, ``"channel"`` or ``"allGather"``.
        seconds: Duration of each phase.
        peak_rss: The trainer's peak resident set size, in bytes.
        rows: Rows of its shard, by DataFrame.
        spooled_bytes: Size of these rows on disk.
        exit: How the trainer ended: ``"ok"``, or a phrase such as ``"exit status 3"``.
        dropped_lines: Log lines that were dropped because the driver could not keep up.
        log_tail: The last lines of output.
        warnings: The warnings shown to the user.
        times: Total duration of Keras' steps in seconds, ``loop``, and the parts of it that are ``reading`` (waiting
            for the next batch) and ``collectives`` (exchanging data with the other workers, and waiting for them); the
            number of ``steps``; and the ``bytes`` that this worker passed to collectives. ``collectives`` and ``bytes``
            are missing if TensorFlow's own collectives are used. Empty if nothing was measured: in custom loops, with
            ``steps_per_execution`` above 1 in tf_keras, with several devices per task, and with one worker.
        steps: For the slowest steps and the last ones: the step's number, when it began in seconds since the epoch, and
            its ``loop``, ``reading`` and ``collectives`` (0 if they are not measured).
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
    times: Mapping[str, float] = field(default_factory=dict)
    steps: tuple[tuple[float, ...], ...] = ()


def tensorflow_version() -> str:
    """Return the version of the installed TensorFlow without importing it; "" if there is none."""
    for name in ("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tf-nightly", "tf-nightly-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return ""
