"""One launch of the group: the event loop between a Spark job and the driver's channel."""

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
# Agents stop within a second or two of the command; after this long, cancel the job.
_STOP_SECONDS = 8.0
# How often to ask Spark whether it is still computing the workers' input.
_LOOK_SECONDS = 1.0
# If no worker has connected after this long, hint at busy slots.
_HINT_SECONDS = 20.0
# How often to name the ranks that are missing.
_MISSING_SECONDS = 30.0


@dataclass
class LaunchResult:
    """The result of one launch.

    Attributes:
        value: Pickled value of rank 0, in chunks; None if the launch failed.
        reports: By rank; ranks that Spark lost have none.
        failures: By rank; their ``seconds`` count from the start of the launch.
        spark_error: What Spark raised, or None.
        cancelled: The job was cancelled by something other than this run.
        start_timed_out: How many workers had connected when ``start_timeout`` expired; None if it did not.
        stop_reason: Why the workers were stopped, or None.
        seconds: Duration of the launch.
        hosts: By rank, of each rank that has connected.
        had_data: The launch computed DataFrames.
        commits: Names of the checkpoints that were saved.
        resumed: Positions in ``fit`` at which training resumed.
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
        """The failures by rank, with their original exceptions if these can be rebuilt here."""
        return {rank: failure.to_worker_failure() for rank, failure in sorted(self.failures.items())}


class Launch:
    """The event loop of one launch.

    Args:
        spec: The agents' instructions.
        channel: An open channel; the caller closes it.
        console: Shows the workers' output.
        stall_timeout: See :class:`~spark_tensorflow_distributor.MirroredStrategyRunner`.
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
        """Run the job to its end. On an exception, typically Ctrl-C, stop the workers before it propagates."""
        try:
            # The end of the job is an event like any other, so that nothing needs polling.
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
        # Not job.is_alive: the thread that reports the end of the job is still alive for a moment.
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
                        "No worker has started after %d s. Are the cluster's slots busy with other jobs, or are there "
                        "fewer than %d? Waiting up to start_timeout=%g s.",
                        waited, self._spec.world_size, self._start_timeout,
                    )  # fmt: skip
            if self._group.stop_reason is not None:
                stopped_at = stopped_at or now
                if now - stopped_at > _STOP_SECONDS:
                    self._end(job, 0)
                    return
        self._drain()

    def _watch_computing(self, job: SparkJob, now: float) -> None:
        """Hold back all timeouts while Spark computes the DataFrames, which may take long."""
        if not self._spec.frames or self._group.ever_connected or now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        if job.is_computing(self._spec.world_size):
            self._waiting_since = now

    def _name_missing(self, now: float) -> None:
        """Log from time to time which ranks are missing while others wait for them."""
        group = self._group
        if group.has_met or group.stop_reason is not None or not group.ever_connected:
            self._next_missing = now + _MISSING_SECONDS
        elif now >= self._next_missing:
            self._next_missing = now + _MISSING_SECONDS
            missing = sorted(set(range(self._spec.world_size)) - group.members.keys())
            _log.warning(
                "Waiting for rank%s %s: %d of %d workers have connected. Giving up after start_timeout=%g s.",
                "s" if len(missing) > 1 else "", ", ".join(map(str, missing)), len(group.members),
                self._spec.world_size, self._start_timeout,
            )  # fmt: skip

    def _has_not_started(self, job: SparkJob) -> bool:
        """Return False if the workers do run and merely cannot reach this driver; they meet without it then."""
        if not self._group.ever_connected and job.is_running_unseen(self._channel.addresses):
            self._group.uses_all_gather = True
            _log.warning(
                "The workers cannot reach the driver at %s: their output is not shown, and failures are reported only "
                "through Spark. Set tensorflow.spark.distributor.driverPort to a port that is open to the executors.",
                self._channel.addresses,
            )
        return not self._group.uses_all_gather

    def _end(self, job: SparkJob, patience: float) -> None:
        """Wait for the job to end; cancel it if it does not."""
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
