"""One run: launch the group, and launch it again as long as the restart policy allows."""

import contextlib
import logging
import pickle
import secrets
import time
import zlib
from dataclasses import dataclass, replace
from typing import Any

from ...config import RunnerConfig
from ...data.frames import Frames
from ...errors import ClusterError, SerializationError
from ...formatting import one_line
from ...resume.driver_store import DriverCheckpointStore
from ...resume.names import lane_of
from ...resume.settings import CheckpointSettings
from ..shipping import spark_task
from ..specs import TaskSpec, TrainerSettings, tensorflow_version
from . import outcome, plan
from .channel import Channel
from .console import Console, wants_progress
from .launch import Launch, LaunchResult
from .report import AttemptReport, RunReport
from .spark import SparkGateway

_log = logging.getLogger(__name__)

# A relaunch waits this long for all slots before it settles for fewer (min_slots).
_SHRINK_SECONDS = 30.0


@dataclass(frozen=True)
class Program:
    """What the workers run.

    Attributes:
        payload: The pickled program (see ``TaskSpec``).
        is_script: It is a script, not a function.
        name: Shown in Spark's web UI.
        frames: The DataFrames among the function's arguments.
    """

    payload: bytes
    is_script: bool
    name: str
    frames: Frames


class Run:
    """Launches the group, again if necessary, until the run succeeds or fails for good.

    Args:
        config: The runner's arguments.
        gateway: The Spark session.
        program: What the workers run.
        report: Receives a report of each attempt.
    """

    def __init__(self, config: RunnerConfig, gateway: SparkGateway, program: Program, report: RunReport) -> None:
        self._config = config
        self._gateway = gateway
        self._program = program
        self._report = report
        self._id = secrets.token_hex(8)
        # A run that resumes another run's checkpoints needs that run's order of rows.
        folder = config.checkpoint_dir
        self._seed = secrets.randbits(31) if folder is None else zlib.crc32(folder.encode()) >> 1
        self._checkpoints = DriverCheckpointStore()
        self._last_checkpoints: dict[str, str] = {}

    def execute(self, made: plan.RunPlan) -> Any:
        """Train as planned; returns rank 0's value, or raises the error of the run."""
        with contextlib.closing(self._checkpoints):
            return self._attempts(made)

    def _attempts(self, made: plan.RunPlan) -> Any:
        attempt, lost_ports = 0, 0
        policy = outcome.RestartPolicy(self._config.max_restarts)
        error: BaseException | None = None
        while True:
            made, facts = self._wait_for_slots(made, attempt, error)
            result = self._launch(made, facts, attempt)
            if result.succeeded:
                return _unpickle(result)
            if outcome.lost_a_port(result, lost_ports):
                lost_ports += 1
                _log.info("Another process took a worker's port; launching again with other ports.")
                continue
            error = outcome.error_of(result, self._config, made.num_tasks)
            pause = policy.pause(error)
            if pause is None:
                raise error
            attempt += 1
            _log.warning(
                "Attempt %d of %d failed; launching the group again in %g s: %s",
                attempt, self._config.max_restarts + 1, pause, str(error).split("\n")[0],
            )  # fmt: skip
            self._forget_lost_hosts(result)
            time.sleep(pause)

    def _wait_for_slots(
        self, made: plan.RunPlan, attempt: int, cause: BaseException | None
    ) -> tuple[plan.RunPlan, plan.ClusterFacts]:
        """Wait while executors are registering; a relaunch may shrink to ``min_slots``.

        Raises:
            InsufficientSlotsError: There are too few slots and no more can be expected. Its cause is the error of the
                previous attempt, if there was one.
        """
        started = time.monotonic()
        while True:
            facts = self._gateway.facts(self._config)
            error = plan.check_slots(self._config, facts, made.num_tasks)
            if error is None:
                return made, facts
            waited = time.monotonic() - started
            # After a failure, Spark may be about to replace a lost executor.
            may_grow = facts.may_grow or (attempt > 0 and not facts.is_local)
            if not may_grow or waited > min(_SHRINK_SECONDS, self._config.start_timeout):
                smaller = self._shrunk(facts, attempt)
                if smaller is not None:
                    return smaller, facts
            if not may_grow or waited > self._config.start_timeout:
                raise error from cause
            time.sleep(0.25)

    def _forget_lost_hosts(self, result: LaunchResult) -> None:
        """Make Spark give up hosts that are gone, which it would notice only minutes later."""
        lost = {failure.host for failure in result.worker_failures.values() if failure.kind == "lost"}
        for host in sorted(lost - {"?"}):
            self._gateway.forget_host(host)

    def _shrunk(self, facts: plan.ClusterFacts, attempt: int) -> plan.RunPlan | None:
        least = self._config.min_slots
        room = plan.max_slots(self._config, facts)
        if attempt == 0 or least is None or room < least:
            return None
        _log.warning("The cluster has room for %d of %d slots; continuing with those.", room, self._config.num_slots)
        return plan.make_plan(replace(self._config, num_slots=room, min_slots=None), facts)

    def _launch(self, made: plan.RunPlan, facts: plan.ClusterFacts, attempt: int) -> LaunchResult:
        config = self._config
        secret = secrets.token_bytes(32)
        channel = self._open_channel(secret, facts)
        console = Console(show_lines=config.log_to_driver, show_progress=wants_progress(config.progress))
        try:
            spec = self._spec(made, facts, attempt, secret, channel)
            what = f"MirroredStrategyRunner: {self._program.name} on {made.num_tasks} workers"
            frames = self._program.frames
            source = frames.source(made.num_tasks) if frames.specs else None
            job = self._gateway.submit(spark_task(pickle.dumps(spec)), made.num_tasks, what, source)
            result = Launch(spec, channel, console, config.stall_timeout).run(job)
        finally:
            channel.close()
            console.close()
        self._add_to_report(result, attempt, channel.dropped_lines)
        self._warn_of_version(result)
        return result

    def _open_channel(self, secret: bytes, facts: plan.ClusterFacts) -> Channel:
        port = plan.number(facts.conf.get(plan.DRIVER_PORT, "0"), plan.DRIVER_PORT)
        bind, advertised = self._gateway.channel_address()
        try:
            return Channel(secret, bind, advertised, int(port), self._checkpoints if self._keeps_checkpoints else None)
        except OSError as error:
            raise ClusterError(
                f"The driver cannot listen on {bind}:{int(port)} for its workers: {error}. The address comes from "
                f"spark.driver.bindAddress or spark.driver.host, the port from {plan.DRIVER_PORT} (0 for any free one)."
            ) from error

    @property
    def _keeps_checkpoints(self) -> bool:
        """Whether the driver keeps the checkpoints, for later attempts of this run only."""
        return self._config.checkpoint_dir is None and self._config.max_restarts > 0

    def _checkpoint_settings(self) -> CheckpointSettings:
        config = self._config
        return CheckpointSettings(
            folder=config.checkpoint_dir,
            at_driver=self._keeps_checkpoints,
            interval=config.checkpoint_interval,
            run_id=self._id,
            expected=tuple(self._last_checkpoints.values()) if config.checkpoint_dir is not None else (),
        )

    def _spec(
        self, made: plan.RunPlan, facts: plan.ClusterFacts, attempt: int, secret: bytes, channel: Channel
    ) -> TaskSpec:
        config, conf = self._config, facts.conf
        limit = plan.parse_bytes(conf.get("spark.driver.maxResultSize", "1g"), "spark.driver.maxResultSize")
        return TaskSpec(
            config=replace(config, env=dict(config.env), resource_profile=None),
            trainer=TrainerSettings(
                is_script=self._program.is_script,
                use_custom_strategy=config.use_custom_strategy,
                gpu_is_shared=made.gpu_is_shared,
                max_result_bytes=limit,
                seed=self._seed,
                checkpoints=self._checkpoint_settings(),
            ),
            attempt=attempt,
            world_size=made.num_tasks,
            secret=secret,
            driver_addresses=channel.addresses,
            driver_is_client=facts.is_connect,
            payload=self._program.payload,
            gpus_by_rank=made.gpus_by_rank,
            max_row_bytes=plan.max_row_bytes(limit, self._gateway.heap_bytes()),
            warm_start=plan.is_true(conf.get(plan.WARM_START, "true"), plan.WARM_START),
            warm_seconds=plan.number(conf.get(plan.WARM_SECONDS, "300"), plan.WARM_SECONDS),
            submitted_at=time.time(),
            loopback=facts.is_local,
            log_to_executor=not (facts.is_local and config.log_to_driver),
            worker_ports=plan.ports(conf.get(plan.WORKER_PORTS, ""), plan.WORKER_PORTS),
            frames=self._program.frames.specs,
        )

    def _add_to_report(self, result: LaunchResult, attempt: int, dropped: int) -> None:
        for name in result.commits:
            self._last_checkpoints[lane_of(name)] = name
        cause = outcome.root_cause(result.failures)
        workers = dict(sorted(result.reports.items()))
        self._report.attempts.append(
            AttemptReport(
                attempt, result.seconds, workers, result.worker_failures, cause, tuple(result.commits),
                tuple({key: position[key] for key in ("fit", "epoch", "step")} for position in result.resumed),
            )
        )  # fmt: skip
        if result.succeeded:
            self._report.num_tasks = len(workers)
        self._report.dropped_lines += dropped + sum(worker.dropped_lines for worker in workers.values())

    @staticmethod
    def _warn_of_version(result: LaunchResult) -> None:
        """Warn if a returned model may not load here because the versions of TensorFlow differ."""
        own = tensorflow_version()
        theirs = {worker.tensorflow for worker in result.reports.values() if worker.tensorflow}
        if own and any(version.split(".")[:2] != own.split(".")[:2] for version in theirs):
            _log.warning(
                "The executors have TensorFlow %s, but the driver has %s: a returned model may not load here.",
                ", ".join(sorted(theirs)), own,
            )  # fmt: skip


def _unpickle(result: LaunchResult) -> Any:
    chunks = result.value or []
    if not chunks:
        return None
    try:
        return pickle.loads(b"".join(chunks))
    except Exception as error:
        raise SerializationError(
            f"The function returned a value that cannot be loaded at the driver: {one_line(error)}. The driver needs "
            "the packages that the value's classes come from, in the executors' versions."
        ) from error
