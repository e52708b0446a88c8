"""One launch of the group: the event loop between a Spark job and the driver's channel."""

import functools
import json
import queue
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...errors import ClusterError, WorkerFailure
from ...formatting import position_text, rank_list
from ..failures import Failure
from ..specs import TaskSpec, WorkerReport
from ..wire import from_json
from .channel import Channel
from .console import Console
from .epochs import EpochEvents
from .group import Group
from .job import SparkJob
from .log_dir import LogDirectory, LogWriter
from .loggers import run_log as _log

_TICK_SECONDS = 0.25
# After Ctrl-C, wait for the workers this long, and as long as pieces of their log files arrive.
_INTERRUPTED_SECONDS = 3.0
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
        cancelled: Whether the job was cancelled by something other than this run.
        start_timed_out: How many workers had connected when ``start_timeout`` expired; None if it did not.
        stop_reason: Why the workers were stopped, or None.
        seconds: Duration of the launch.
        hosts: The host of each rank that has connected, by rank.
        frames: Names of the DataFrames that the launch computed.
        commits: Names of the checkpoints that were saved.
        resumed: Positions in ``fit`` at which training resumed.
        calls_were_lost: Whether a lost connection kept the driver from telling the workers which calls to make alone.
        accumulated: What each rank has added to accumulators; see ``spark_objects.accumulated``.
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
    frames: tuple[str, ...] = ()
    commits: list[str] = field(default_factory=list)
    resumed: list[dict[str, Any]] = field(default_factory=list)
    accumulated: dict[int, str] = field(default_factory=dict)
    calls_were_lost: bool = False

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
        epochs: Handles the epochs that the workers report.
        logs: Receives the files that workers write below their ``log_dir``; None if there is no such directory.

    Attributes:
        result: The result so far.
    """

    def __init__(
        self,
        spec: TaskSpec,
        channel: Channel,
        console: Console,
        stall_timeout: float | None,
        epochs: EpochEvents,
        logs: LogDirectory | None = None,
    ) -> None:
        self._spec = spec
        self._epochs = epochs
        self._channel = channel
        self._console = console
        self._start_timeout = spec.config.start_timeout
        self._group = Group(
            spec.world_size, stall_timeout=stall_timeout, chief_may_need_others=not spec.plan.uses_sockets
        )
        self.result = LaunchResult(frames=tuple(frame.name for frame in spec.frames))
        self._started = time.monotonic()
        self._waiting_since = self._started
        self._next_tick = self._started
        self._next_look = self._started
        self._next_missing = self._started + _MISSING_SECONDS
        self._channel_value: list[bytes] = []
        self._job_ended = False
        self._logs = None if logs is None else LogWriter(logs, spec.attempt, channel.send)
        self._last_piece = 0.0

    def run(self, job: SparkJob) -> LaunchResult:
        """Run the job to its end. On an exception, typically Ctrl-C, stop the workers before it propagates."""
        try:
            if self._logs is not None:
                self._logs.start()
            # The end of the job is an event like any other, so that nothing needs polling.
            job.start(lambda: self._channel.events.put((-1, {"type": "job_ended"})))
            self._loop(job)
        except BaseException:
            self._command(self._group.stop("The run was interrupted on the driver."))
            self._end_interrupted(job)
            self._drain()
            raise
        finally:
            if self._logs is not None:
                self._logs.close()
            self.result.seconds = time.monotonic() - self._started
            self.result.stop_reason = self._group.stop_reason
            self.result.calls_were_lost = self._group.are_calls_lost
        self._take_rows(job)
        return self.result

    def _loop(self, job: SparkJob) -> None:
        stopped_at: float | None = None
        hinted = False
        # Not job.is_alive: the thread that reports the end of the job is still alive for a moment.
        while not self._job_ended:
            self._next_event()
            now = self._now()
            if now < self._next_tick:
                continue
            self._next_tick = now + _TICK_SECONDS
            self._command(self._epochs.new_requests())
            self._command(self._group.tick(now))
            self._watch_computing(job, now)
            self._name_missing(now)
            waited = now - self._waiting_since
            if not self._group.has_met and self._group.stop_reason is None:
                if waited > self._start_timeout and self._has_not_started(job):
                    self.result.start_timed_out = len(self._group.members)
                    self._command(self._group.stop(f"The workers did not all join within {self._start_timeout:g} s."))
                elif waited > _HINT_SECONDS and not self._group.ever_connected and not hinted:
                    hinted = True
                    _log.warning(
                        "No worker has started after %d s. Are the cluster's slots busy with other jobs, or are there "
                        "fewer than %d? Waiting up to start_timeout=%g s.",
                        waited, self._spec.world_size, self._start_timeout,
                    )  # fmt: skip
            if self._group.stop_reason is not None:
                stopped_at = stopped_at or now
                if now - max(stopped_at, self._last_piece) > _STOP_SECONDS:
                    self._end(job, 0)
                    return
        self._drain()
        self._take_last_pieces()

    def _now(self) -> float:
        """Return the time by a clock that stops during callbacks, because messages wait for these to return."""
        return time.monotonic() - self._epochs.seconds

    def _watch_computing(self, job: SparkJob, now: float) -> None:
        """Suspend all timeouts while Spark computes the DataFrames, which can take long."""
        if not self._spec.frames or self._group.ever_connected or now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        if job.is_computing(self._spec.world_size):
            self._waiting_since = now

    def _name_missing(self, now: float) -> None:
        """Periodically log which ranks are missing while others wait for them."""
        group = self._group
        if group.has_met or group.stop_reason is not None or not group.ever_connected:
            self._next_missing = now + _MISSING_SECONDS
        elif now >= self._next_missing:
            self._next_missing = now + _MISSING_SECONDS
            if missing := sorted(set(range(self._spec.world_size)) - group.members.keys()):
                _log.warning(
                    "Waiting for %s: %d of %d workers have connected. Giving up after start_timeout=%g s.",
                    rank_list(missing), len(group.members), self._spec.world_size, self._start_timeout,
                )  # fmt: skip

    def _has_not_started(self, job: SparkJob) -> bool:
        """Return False if the workers are running but cannot reach this driver; they then join without it."""
        if not self._group.ever_connected and job.is_running_unseen(self._channel.addresses):
            self._group.meet_without_driver()
            _log.warning(
                "The workers cannot reach the driver at %s: their output is not shown, and failures are reported only "
                "through Spark. Set tensorflow.spark.distributor.driverPort to a port that is open to the executors.",
                self._channel.addresses,
            )
            return False
        return True

    def _end_interrupted(self, job: SparkJob) -> None:
        """Take the workers' last lines and log files while they stop; cancel the job if they do not."""
        started = self._now()
        try:
            while not self._job_ended and self._waits_for_pieces(started):
                self._next_event()
            self._take_last_pieces()
        finally:  # a second Ctrl-C, for example
            self._end(job, 0)

    def _take_last_pieces(self) -> None:
        """After the end of the job, take the log files of workers that Spark is still killing."""
        started = self._now()
        while self._logs is not None and self._group.connected and self._waits_for_pieces(started):
            self._next_event()

    def _waits_for_pieces(self, since: float) -> bool:
        return self._now() - max(since, self._last_piece) < _INTERRUPTED_SECONDS

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
        kind, now = message["type"], self._now()
        if kind == "job_ended":
            self._job_ended = True
            return
        if kind == "connected":
            self.result.hosts[rank] = str(message.get("host", "?"))
            self._command(self._group.connect(rank, message, now))
            self._command(self._epochs.on_connected(rank))
        elif kind == "disconnected":
            self._group.disconnect(rank, now)
        elif kind == "blocked":
            self._group.block(rank, now - message["seconds"])
        elif kind == "unblocked":
            self._group.unblock(rank)
        elif kind == "broken":
            error = message["error"]
            raise ClusterError(f"The driver can no longer communicate with its workers: {error!r}.") from error
        else:
            self._command(self._group.receive(rank, message, now))
            self._show(rank, kind, message)

    def _show(self, rank: int, kind: str, message: dict[str, Any]) -> None:
        host = self.result.hosts.get(rank, "?")
        if kind == "log":
            self._console.lines(rank, host, message)
            self._channel.show(rank, message)
        elif kind == "warning":
            self._console.warn(rank, host, message["text"])
        elif kind == "progress":
            self._console.progress(message)
        elif kind == "log_piece":
            self._take_piece(rank, message)
        elif kind == "report":
            self._take_report(rank, message)
        elif kind == "epochs":
            self._command(self._epochs.take(rank, message))
        elif kind == "alive":
            self._epochs.on_alive(rank, message)
        elif kind == "phase":
            self._command(self._epochs.on_phase(rank))
        elif kind == "result":
            self._channel_value = message["chunks"]
        elif kind == "committed":
            self.result.commits.append(message["name"])
        elif kind == "resumed":
            self.result.resumed.append(message)
            done = f"Restored fit() {message['fit'] + 1}, which was complete."
            text = done if message["complete"] else f"Resumed {position_text(message, of_call=True)}."
            _log.info(text, extra={"rank": rank, "host": host, "attempt": self._spec.attempt})
        else:
            _log.debug("rank %d: %s", rank, kind)

    def _take_piece(self, rank: int, message: dict[str, Any]) -> None:
        self._last_piece = self._now()
        if self._logs is not None:
            self._logs.put(rank, message)

    def _command(self, commands: list[tuple[int | None, dict[str, Any]]]) -> None:
        for rank, message in commands:
            self._channel.send(rank, message)

    def _take_report(self, rank: int, message: Mapping[str, Any]) -> None:
        self.result.reports[rank] = from_json(WorkerReport, message["report"])
        self.result.accumulated[rank] = message["accumulated"]
        for epochs in message["epochs"]:
            self._epochs.take(rank, epochs)
        if message["failure"] is not None:
            self._record_failure(Failure.from_json(message["failure"]), self._now())

    def _record_failure(self, failure: Failure, when: float) -> None:
        self.result.failures.setdefault(failure.rank, replace(failure, seconds=when - self._started))

    def _take_rows(self, job: SparkJob) -> None:
        for failure in self._group.failures.values():
            self.result.failures.pop(failure.rank, None)  # the group's record has the time when it arrived
            self._record_failure(failure, failure.seconds)
        value: dict[int, bytes] = {}
        for rank, kind, seq, data in job.rows:
            if kind == "report":
                self._take_report(rank, json.loads(data))
            elif kind == "result":
                value[seq] = data
        self.result.spark_error = job.error
        if job.error is not None:
            text = str(job.error)
            carried = Failure.from_spark_error(text)
            if carried is not None:
                self._record_failure(carried, self._now())
            self.result.cancelled = self._group.stop_reason is None and "cancel" in text.lower() and carried is None
        elif not self.result.failures and self.result.start_timed_out is None and len(self.result.reports):
            self.result.value = self._channel_value or [value[seq] for seq in sorted(value)]
