"""One launch of the group: a Spark job, a channel, and the thread that called ``run`` between them."""

import functools
import json
import logging
import queue
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import WorkerFailure
from ..failures import Failure
from ..specs import TaskSpec, WorkerReport
from ..wire import from_json
from .channel import Channel
from .console import Console
from .group import Group
from .spark import SparkJob

_log = logging.getLogger(__name__)

_TICK_SECONDS = 0.25
# Agents that were told to stop end within a second or two; after this the job is cancelled.
_STOP_SECONDS = 8.0
# How often to ask Spark whether it still computes the workers' input.
_LOOK_SECONDS = 1.0
# The first sign of life may take this long before a hint about busy slots is due.
_HINT_SECONDS = 20.0
# How often it is said who has not come yet.
_MISSING_SECONDS = 30.0


@dataclass
class LaunchResult:
    """What one launch came to.

    Attributes:
        value: pickled value of rank 0, in chunks; None where the launch failed.
        reports: by rank, as far as they came.
        failures: by rank; their ``seconds`` count from the start of the launch.
        spark_error: what Spark raised, or None.
        cancelled: the job was cancelled from outside of the run.
        start_timed_out: how many workers had come when start_timeout was over; None where it was not.
        stop_reason: why the workers were stopped, or None.
        had_data: DataFrames were computed for it.
        commits: names of the checkpoints that were saved.
        resumed: places in ``fit`` from which training went on.
    """

    value: list[bytes] | None = None
    reports: dict[int, WorkerReport] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    spark_error: BaseException | None = None
    cancelled: bool = False
    start_timed_out: int | None = None
    stop_reason: str | None = None
    seconds: float = 0.0
    hosts: dict[int, str] = field(default_factory=dict)
    had_data: bool = False
    commits: list[str] = field(default_factory=list)
    resumed: list[dict[str, Any]] = field(default_factory=list)

    @property
    def succeeded(self) -> bool:
        return self.value is not None

    @functools.cached_property
    def worker_failures(self) -> dict[int, WorkerFailure]:
        """The failures by rank, in order, with their exceptions where those can be rebuilt here."""
        return {rank: failure.to_worker_failure() for rank, failure in sorted(self.failures.items())}


class Launch:
    """Runs the loop of one launch.

    Args:
        spec: what the agents are told.
        channel: open; closed by the caller.
        console: shows what the workers say.
        stall_timeout: see :class:`~spark_tensorflow_distributor.MirroredStrategyRunner`.
    """

    def __init__(self, spec: TaskSpec, channel: Channel, console: Console, stall_timeout: float | None) -> None:
        self._spec = spec
        self._channel = channel
        self._console = console
        self._start_timeout = spec.config.start_timeout
        self._group = Group(spec.world_size, stall_timeout=stall_timeout)
        self._result = LaunchResult(had_data=bool(spec.frames))
        self._started = time.monotonic()
        self._waiting_since = self._started
        self._next_look = self._started
        self._next_missing = self._started + _MISSING_SECONDS
        self._channel_value: list[bytes] = []
        self._job_ended = False

    def run(self, job: SparkJob) -> LaunchResult:
        """Run the job to its end. On an exception (Ctrl-C above all) the workers are stopped before it goes on."""
        try:
            # The job's end is an event as any other, so that nothing has to be polled for.
            job.start(lambda: self._channel.events.put((-1, {"type": "job_ended"})))
            self._loop(job)
        except BaseException:
            self._command(self._group.stop("The run was interrupted at the driver."))
            self._end(job, 3.0)
            raise
        self._take_rows(job)
        self._result.seconds = time.monotonic() - self._started
        self._result.stop_reason = self._group.stop_reason
        return self._result

    def _loop(self, job: SparkJob) -> None:
        stopped_at: float | None = None
        hinted = False
        # Not job.is_alive: the thread that told of the job's end is still alive then, for a moment.
        while not self._job_ended:
            self._next_event()
            now = time.monotonic()
            self._command(self._group.tick(now))
            self._watch_computing(job, now)
            self._name_missing(now)
            waited = now - self._waiting_since
            if not self._group.has_met and self._group.stop_reason is None:
                if waited > self._start_timeout and self._has_not_started(job):
                    self._result.start_timed_out = len(self._group.members)
                    self._command(self._group.stop(f"The workers did not meet within {self._start_timeout:g} s."))
                elif waited > _HINT_SECONDS and not self._group.ever_connected and not hinted:
                    hinted = True
                    _log.warning(
                        "No worker has started after %d s. Are the cluster's slots busy with other jobs, or fewer than "
                        "%d? Waiting for up to start_timeout=%g s.",
                        waited, self._spec.world_size, self._start_timeout,
                    )  # fmt: skip
            if self._group.stop_reason is not None:
                stopped_at = stopped_at or now
                if now - stopped_at > _STOP_SECONDS:
                    self._end(job, 0)
                    return
        self._drain()

    def _watch_computing(self, job: SparkJob, now: float) -> None:
        """Let no timeout begin for as long as Spark computes the DataFrames, which takes its time."""
        if not self._spec.frames or self._group.ever_connected or now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        if job.is_computing(self._spec.world_size):
            self._waiting_since = now

    def _name_missing(self, now: float) -> None:
        """Say now and then which ranks have not come, while others wait for them."""
        group = self._group
        if group.has_met or group.stop_reason is not None or not group.ever_connected:
            self._next_missing = now + _MISSING_SECONDS
        elif now >= self._next_missing:
            self._next_missing = now + _MISSING_SECONDS
            missing = sorted(set(range(self._spec.world_size)) - group.members.keys())
            _log.warning(
                "Waiting for rank%s %s: %d of %d workers have come. Up to start_timeout=%g s.",
                "s" if len(missing) > 1 else "", ", ".join(map(str, missing)), len(group.members),
                self._spec.world_size, self._start_timeout,
            )  # fmt: skip

    def _has_not_started(self, job: SparkJob) -> bool:
        """False where the workers do run, and only cannot reach this driver; they meet without it then."""
        if not self._group.ever_connected and job.is_running_unseen(self._channel.addresses):
            self._group.uses_all_gather = True
            _log.warning(
                "The workers cannot reach the driver at %s: no output is shown, and a failure is known only when Spark "
                "tells it. tensorflow.spark.distributor.driverPort fixes the port, so that it can be opened.",
                self._channel.addresses,
            )
        return not self._group.uses_all_gather

    def _end(self, job: SparkJob, patience: float) -> None:
        """See the job end; cancel it if it does not end by itself."""
        job.join(patience)
        if job.is_alive:
            job.cancel()
            job.join(10.0)

    def _next_event(self) -> None:
        try:
            rank, message = self._channel.events.get(timeout=_TICK_SECONDS)
        except queue.Empty:
            return
        self._handle(rank, message)

    def _drain(self) -> None:
        while not self._channel.events.empty():
            self._handle(*self._channel.events.get())

    def _handle(self, rank: int, message: dict[str, Any]) -> None:
        kind, now = message["type"], time.monotonic()
        if kind == "job_ended":
            self._job_ended = True
            return
        if kind == "connected":
            self._result.hosts[rank] = str(message.get("host", "?"))
            self._command(self._group.connect(rank, message, now))
        elif kind == "disconnected":
            self._group.disconnect(rank, now)
        else:
            self._command(self._group.receive(rank, message, now))
            self._show(rank, kind, message)

    def _show(self, rank: int, kind: str, message: dict[str, Any]) -> None:
        host = self._result.hosts.get(rank, "?")
        if kind == "log":
            self._console.lines(rank, host, message)
        elif kind == "warning":
            self._console.warn(rank, host, message["text"])
        elif kind == "progress":
            self._console.progress(message)
        elif kind == "report":
            self._take_report(rank, message)
        elif kind == "result":
            self._channel_value = message["chunks"]
        elif kind == "committed":
            self._result.commits.append(message["name"])
        elif kind == "resumed":
            self._result.resumed.append(message)
        else:
            _log.debug("rank %d: %s", rank, kind)

    def _command(self, commands: list[tuple[int | None, dict[str, Any]]]) -> None:
        for rank, message in commands:
            self._channel.send(rank, message)

    def _take_report(self, rank: int, message: Mapping[str, Any]) -> None:
        self._result.reports[rank] = from_json(WorkerReport, message["report"])
        if message["failure"] is not None:
            self._record_failure(Failure.from_json(message["failure"]), time.monotonic())

    def _record_failure(self, failure: Failure, when: float) -> None:
        self._result.failures.setdefault(failure.rank, replace(failure, seconds=when - self._started))

    def _take_rows(self, job: SparkJob) -> None:
        for failure in self._group.failures.values():
            self._result.failures.pop(failure.rank, None)  # the group knows when it arrived
            self._record_failure(failure, failure.seconds)
        value: dict[int, bytes] = {}
        for rank, kind, seq, data in job.rows:
            if kind == "report":
                self._take_report(rank, json.loads(data))
            elif kind == "result":
                value[seq] = data
        self._result.spark_error = job.error
        if job.error is not None:
            text = str(job.error)
            carried = Failure.from_spark_error(text)
            if carried is not None:
                self._record_failure(carried, time.monotonic())
            self._result.cancelled = self._group.stop_reason is None and "cancel" in text.lower() and carried is None
        elif not self._result.failures and self._result.start_timed_out is None and len(self._result.reports):
            self._result.value = self._channel_value or [value[seq] for seq in sorted(value)]
