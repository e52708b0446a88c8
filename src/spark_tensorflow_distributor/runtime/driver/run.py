"""Executes one run: launches the group, and relaunches it as long as the restart policy allows."""

import contextlib
import math
import os
import pickle
import secrets
import time
import zlib
from dataclasses import dataclass, replace
from typing import Any

from ...config import RunnerConfig
from ...data.frames import Frames
from ...errors import ClusterError
from ...formatting import first_line, sentence
from ...resume.driver_store import DriverCheckpointStore
from ...resume.names import lane_of
from ...resume.settings import CheckpointSettings
from ...training.keras_api import major_and_minor
from ..shipping import spark_task
from ..spark_objects import add_accumulated
from ..spark_settings import DRIVER_PORT
from ..specs import RunPlan, TaskSpec, tensorflow_version
from . import outcome, plan
from .callbacks import CallbackList
from .channel import Channel
from .console import Console, wants_progress
from .control import RunControl
from .epochs import EpochEvents
from .job import SparkJob
from .launch import Launch, LaunchResult
from .log_dir import LogDirectory
from .loggers import run_log as _log
from .program_pickler import PackedProgram
from .record import AttemptReport
from .report import RunReport
from .result import load_result
from .spark import SparkGateway

# A relaunch waits this long for all slots before it settles for fewer (min_slots).
_SHRINK_SECONDS = 30.0
# How often to log that the run waits for executors.
_WAITING_SECONDS = 30.0
# After an executor has registered, others may still follow for this long.
_REGISTERING_SECONDS = 30.0


@dataclass(frozen=True)
class Program:
    """What the workers run.

    Attributes:
        packed: The pickled program, with the shared variables that it uses.
        is_script: Whether it is a script, not a function.
        name: Its name, shown in Spark's web UI.
        frames: The DataFrames among the function's arguments.
        modules: A zip archive of the caller's own modules; empty if there are none.
    """

    packed: PackedProgram
    is_script: bool
    name: str
    frames: Frames
    modules: bytes = b""


class Run:
    """Launches the group, again if necessary, until the run succeeds or fails for good.

    Args:
        config: The runner's arguments.
        gateway: The Spark session.
        program: What the workers run.
        report: Receives a report of each attempt.
        callbacks: The callbacks of the run.
        control: The requests to end the run.
    """

    def __init__(
        self,
        config: RunnerConfig,
        gateway: SparkGateway,
        program: Program,
        report: RunReport,
        callbacks: CallbackList,
        control: RunControl,
    ) -> None:
        self._config = config
        self._gateway = gateway
        self._program = program
        self._report = report
        self._callbacks, self._control = callbacks, control
        self._id = secrets.token_hex(8)
        # A run that resumes another run's checkpoints needs that run's order of rows.
        folder = config.checkpoint_path
        self._seed = secrets.randbits(31) if folder is None else zlib.crc32(folder.encode()) >> 1
        self._checkpoints = DriverCheckpointStore()
        self._last_checkpoints: dict[str, str] = {}
        self._logs: LogDirectory | None = None
        self._console = Console(
            show_lines=bool(config.log_to_driver),
            show_progress=wants_progress(config.progress),
            log_lines=config.log_to_driver == "logging",
        )

    def execute(self, run_plan: RunPlan) -> Any:
        """Train as planned; return rank 0's value, or raise the error of the run."""
        with contextlib.ExitStack() as cleanup:
            cleanup.enter_context(contextlib.closing(self._checkpoints))
            cleanup.enter_context(contextlib.closing(self._console))
            if self._config.log_dir is not None:
                self._logs = cleanup.enter_context(contextlib.closing(LogDirectory(os.fspath(self._config.log_dir))))
            return self._attempts(run_plan)

    def _attempts(self, run_plan: RunPlan) -> Any:
        attempt, lost_ports = 0, 0
        policy = outcome.RestartPolicy(self._config.max_restarts)
        error: BaseException | None = None
        while True:
            run_plan, facts = self._wait_for_slots(run_plan, attempt, error)
            result = self._launch(run_plan, facts, attempt)
            if result.succeeded:
                value = load_result(result.value or [])
                add_accumulated(result.accumulated.values())
                return value
            if outcome.lost_a_port(result, lost_ports):
                lost_ports += 1
                _log.info("Another process took a worker's port; launching again with other ports.")
                continue
            if self._gateway.is_stopped and outcome.was_ended_by_spark(result):
                raise outcome.stopped_session_error(result)
            self._log_failures(result, attempt)
            error = outcome.error_of(result, self._config, run_plan.num_tasks)
            pause = policy.pause(error, calls_were_lost=result.calls_were_lost)
            if pause is None:
                raise error
            attempt += 1
            with self._console.above_bar():
                _log.warning(
                    "Attempt %d of %d failed; launching the group again in %g s: %s",
                    attempt, self._config.max_restarts + 1, pause, first_line(str(error), 1000),
                )  # fmt: skip
            self._forget_lost_hosts(result)
            self._control.sleep(pause)

    @staticmethod
    def _log_failures(result: LaunchResult, attempt: int) -> None:
        for rank, failure in result.worker_failures.items():
            _log.info(
                "Rank %d @ %s failed (%s): %s",
                rank, failure.host, failure.kind, first_line(failure.message, 1000),
                extra={"rank": rank, "host": failure.host, "attempt": attempt},
            )  # fmt: skip

    def _wait_for_slots(
        self, run_plan: RunPlan, attempt: int, cause: BaseException | None
    ) -> tuple[RunPlan, plan.ClusterFacts]:
        """Wait while executors are registering; a relaunch may shrink to ``min_slots``.

        Raises:
            InsufficientSlotsError: There are too few slots and no more can be expected. Its cause is the error of the
                previous attempt, if there was one.
        """
        started = next_line = time.monotonic()
        known, grew_at = None, -math.inf
        while True:
            self._control.check_before_start() if attempt == 0 else self._control.check()
            facts = self._gateway.facts(self._config)
            error = plan.check_slots(self._config, facts, run_plan.num_tasks)
            if error is None:
                return run_plan, facts
            waited = time.monotonic() - started
            executors = facts.executors or 0
            if known is not None and executors > known:
                grew_at = time.monotonic()
            known = executors
            # Executors register one after the other. After a failure, Spark may be about to replace a lost one.
            is_growing = time.monotonic() - grew_at < _REGISTERING_SECONDS
            may_grow = facts.may_grow or is_growing or (attempt > 0 and not facts.is_local)
            if not may_grow or waited > min(_SHRINK_SECONDS, self._config.start_timeout):
                smaller = self._shrunk(facts, attempt)
                if smaller is not None:
                    return replace(smaller, settings=run_plan.settings), facts
            if not may_grow or waited > self._config.start_timeout:
                raise error from cause
            if time.monotonic() >= next_line:
                next_line += _WAITING_SECONDS
                _log.warning(
                    "Waiting for executors: %d registered, with %d of %d slots. Giving up after start_timeout=%g s.",
                    executors, facts.slots or 0, run_plan.num_tasks, self._config.start_timeout,
                )  # fmt: skip
            self._control.sleep(0.25)

    def _forget_lost_hosts(self, result: LaunchResult) -> None:
        """Make Spark drop hosts that are gone, which it would notice by itself only minutes later."""
        lost = {failure.host for failure in result.worker_failures.values() if failure.kind == "lost"}
        for host in sorted(lost - {"?"}):
            self._gateway.forget_host(host)

    def _shrunk(self, facts: plan.ClusterFacts, attempt: int) -> RunPlan | None:
        least = self._config.min_slots
        room = plan.max_slots(self._config, facts)
        if attempt == 0 or least is None or room < least:
            return None
        _log.warning("The cluster has room for %d of %d slots; continuing with those.", room, self._config.num_slots)
        return plan.make_plan(replace(self._config, num_slots=room, min_slots=None), facts)

    def _launch(self, run_plan: RunPlan, facts: plan.ClusterFacts, attempt: int) -> LaunchResult:
        config = self._config
        secret = secrets.token_bytes(32)
        channel = self._open_channel(secret, run_plan)
        self._console.begin_attempt(attempt)
        _log.info("Attempt %d: launching %d workers.", attempt + 1, run_plan.num_tasks, extra={"attempt": attempt})
        try:
            spec = self._spec(run_plan, facts, attempt, secret, channel)
            what = f"MirroredStrategyRunner: {self._program.name} on {run_plan.num_tasks} workers"
            frames = self._program.frames
            source = frames.source(run_plan.num_tasks) if frames.specs else None
            task = spark_task(pickle.dumps(spec), self._program.packed.broadcasts)
            job = SparkJob(self._gateway, self._gateway.barrier_frame(task, run_plan.num_tasks, source), what)
            epochs = EpochEvents(self._report, attempt, self._callbacks, self._control)
            began = time.time() - self._report.started_at
            launch = Launch(spec, channel, self._console, config.stall_timeout, epochs, self._logs)
            self._callbacks.call("on_attempt_begin", attempt)
            try:
                launch.run(job)
            finally:  # for an interrupted run, report what was known until then
                self._add_to_report(launch.result, attempt, began)
        finally:
            channel.close()
        self._warn_of_version(launch.result)
        return launch.result

    def _open_channel(self, secret: bytes, run_plan: RunPlan) -> Channel:
        port = run_plan.settings.driver_port
        bind, advertised = self._gateway.channel_address()
        try:
            return Channel(
                secret,
                bind,
                advertised,
                port,
                self._checkpoints if self._keeps_checkpoints else None,
                world_size=run_plan.num_tasks,
                protection=run_plan.protection,
            )
        except OSError as error:
            raise ClusterError(
                f"The driver cannot listen on {bind}:{port} for its workers: {sentence(error)} The address comes "
                f"from spark.driver.bindAddress or spark.driver.host, the port from {DRIVER_PORT} (0 for any "
                "free one)."
            ) from error

    @property
    def _keeps_checkpoints(self) -> bool:
        """Whether the driver keeps the checkpoints, for later attempts of this run only."""
        return self._config.checkpoint_dir is None and self._config.max_restarts > 0

    def _checkpoint_settings(self) -> CheckpointSettings:
        config = self._config
        return CheckpointSettings(
            folder=config.checkpoint_path,
            at_driver=self._keeps_checkpoints,
            interval=config.checkpoint_interval,
            run_id=self._id,
            expected=tuple(self._last_checkpoints.values()) if config.checkpoint_dir is not None else (),
        )

    def _spec(
        self, run_plan: RunPlan, facts: plan.ClusterFacts, attempt: int, secret: bytes, channel: Channel
    ) -> TaskSpec:
        return TaskSpec(
            config=replace(self._config, env=dict(self._config.env), resource_profile=None, py_modules=()),
            plan=run_plan,
            attempt=attempt,
            secret=secret,
            driver_addresses=channel.addresses,
            driver_is_client=facts.is_connect,
            payload=self._program.packed.payload,
            is_script=self._program.is_script,
            seed=self._seed,
            checkpoints=self._checkpoint_settings(),
            has_callbacks=bool(self._callbacks),
            max_row_bytes=plan.max_row_bytes(run_plan.settings.max_result_bytes, self._gateway.heap_bytes()),
            submitted_at=time.time(),
            is_local=facts.is_local,
            frames=self._program.frames.specs,
            modules=self._program.modules,
        )

    def _add_to_report(self, result: LaunchResult, attempt: int, began: float) -> None:
        for name in result.commits:
            self._last_checkpoints[lane_of(name)] = name
        cause = outcome.root_cause(result.failures)
        workers = dict(sorted(result.reports.items()))
        resumed = tuple({key: each[key] for key in ("fit", "epoch", "step", "complete")} for each in result.resumed)
        self._report.attempts.append(
            AttemptReport(
                attempt, result.seconds, workers, result.worker_failures, cause, tuple(result.commits),
                resumed, began,
            )
        )  # fmt: skip
        if result.succeeded:
            self._report.num_tasks = len(workers)
        self._report.dropped_lines += sum(worker.dropped_lines for worker in workers.values())
        self._report.stopped_by = self._control.stopped_by
        self._callbacks.call("on_attempt_end", self._report.attempts[-1])

    @staticmethod
    def _warn_of_version(result: LaunchResult) -> None:
        """Warn if a returned model may not load here because the versions of TensorFlow differ."""
        own = tensorflow_version()
        theirs = {worker.tensorflow for worker in result.reports.values() if worker.tensorflow}
        if own and any(major_and_minor(version) != major_and_minor(own) for version in theirs):
            _log.warning(
                "The executors have TensorFlow %s, but the driver has %s: a returned model may not load here.",
                ", ".join(sorted(theirs)), own,
            )  # fmt: skip
