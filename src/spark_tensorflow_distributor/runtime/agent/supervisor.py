"""Starts one trainer and watches it until it ends.

A single event loop handles the trainer's output and messages, the fork server's report of its exit, and the driver's
commands. Whatever the trainer does is reported as a :class:`TrainerOutcome`, never raised here.
"""

import contextlib
import math
import os
import selectors
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import BinaryIO

from ..failures import Failure
from ..specs import TrainerSpec
from ..wire import Message
from .checkpoints import CheckpointTransfer
from .driver_loss import DriverLossPolicy
from .fork_client import ForkClient
from .formation import FormationWatch
from .history import HistoryRelay
from .link import DriverLink
from .log_feed import LogFeed
from .output import OutputPipes, Tail
from .process import TrainerOutcome, TrainerProbe
from .questions import CallQuestions
from .rows import RowDelivery
from .trainer_socket import TrainerSocket

_TICK_SECONDS = 0.5
# A short limit, because the trainer's output waits during an attempt to reconnect.
_RECONNECT_SECONDS = 0.5
# How long a released trainer may spend in its exit handlers.
_EXIT_SECONDS = 10.0
_KILL_SECONDS = 5.0
# Time limit for a checkpoint that is still being sent when the worker ends.
_TRANSFER_SECONDS = 3.0


class Supervisor:
    """Supervises one trainer.

    Args:
        rank, host: This worker's rank and host, for its failures.
        fork_client: A connection to the fork server.
        link: The driver's channel, connected or not.
        tail: Keeps the last lines of output.
        history: Sends the entries of the run's history to the driver.
        driver_is_client: See ``TaskSpec``.
        log_to_executor: Whether to copy the output to the executor's stderr.
        logs: Sends the files below the trainer's ``log_dir``.
        has_gpus: Whether the worker trains on GPUs.
        released_by_driver: Whether the driver announces that all workers have returned; otherwise Spark's barrier does.
        formation: Limits how long the trainer waits in TensorFlow for the others.
        rows: Delivers the rows that the trainer waits for; None if there are none.
        transfer: Sends checkpoints to the driver; None if the driver keeps none.
    """

    def __init__(
        self,
        rank: int,
        host: str,
        fork_client: ForkClient,
        link: DriverLink,
        tail: Tail,
        history: HistoryRelay,
        *,
        driver_is_client: bool,
        log_to_executor: bool,
        logs: LogFeed,
        has_gpus: bool,
        released_by_driver: bool,
        formation: FormationWatch,
        rows: RowDelivery | None = None,
        transfer: CheckpointTransfer | None = None,
    ) -> None:
        self._rank, self._host = rank, host
        self._fork_client, self._link, self._tail, self._history = fork_client, link, tail, history
        self._released_by_driver, self._has_channel = released_by_driver, link.is_open
        self._formation, self._rows, self._transfer, self._logs = formation, rows, transfer, logs
        self._driver_loss = DriverLossPolicy(driver_is_client=driver_is_client)
        self._selector = selectors.DefaultSelector()
        self._pipes = OutputPipes(self._selector, link, tail, log_to_executor=log_to_executor, has_gpus=has_gpus)
        self._probe: TrainerProbe | None = None
        self._trainer: TrainerSocket | None = None
        self._last_message = time.monotonic()
        self._outcome = TrainerOutcome()
        self._outcome_message: Message | None = None
        self._exit_message: Message | None = None
        self._stop_reason: str | None = None
        self._stops: Message | None = None  # the driver's requests to end training that the trainer knows
        self._released = False
        self._questions = CallQuestions(link, self._send_to_trainer)

    def start(
        self,
        spec: TrainerSpec,
        payload: bytes,
        directory: str,
        listeners: Sequence[socket.socket],
        checkpoints: Sequence[BinaryIO] = (),
    ) -> BinaryIO:
        """Start the trainer; return the file to which it will write its result.

        Args:
            spec: Describes the trainer.
            payload: The pickled program.
            directory: Where to keep the program and the result, in unnamed files that cannot be left behind.
            listeners: The socket that holds this worker's port, and the one for workers on the same machine.
            checkpoints: The files of ``spec.checkpoint_names``, in the same order.
        """
        out_write, err_write = self._pipes.open("stdout"), self._pipes.open("stderr")
        ours, theirs = socket.socketpair()
        result: BinaryIO = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (outlives this function)
        self._probe = TrainerProbe(directory)
        with tempfile.TemporaryFile(dir=directory) as program:
            program.write(payload)
            program.flush()
            fds = [out_write, err_write, theirs.fileno(), program.fileno(), result.fileno()]
            fds += [listener.fileno() for listener in listeners]
            fds += [file.fileno() for file in (self._probe.file, *checkpoints)]
            self._fork_client.launch(spec, fds)
        os.close(out_write)
        os.close(err_write)
        for sock in (theirs, *listeners):
            sock.close()
        self._trainer = TrainerSocket(ours)
        self._selector.register(ours, selectors.EVENT_READ, self._on_trainer)
        self._selector.register(self._fork_client, selectors.EVENT_READ, self._on_fork_server)
        if self._rows is not None:
            self._rows.start(ours)
            self._selector.register(self._rows, selectors.EVENT_READ, self._on_rows)
        return result

    def watch(self) -> TrainerOutcome:
        """Watch until the function has returned or failed, and the driver has decided how to proceed.

        If the function returned, the trainer is still alive afterwards; :meth:`finish` ends it.
        """
        while self._is_training:
            self._handle_events()
        if self._exit_message is not None:
            self._pipes.drain()
        failure = self._conclude()
        if failure is not None:
            self._announce("failed", failure=failure.to_json())
        elif self._stop_reason is None:
            self._announce("done")
        if self._has_channel and self._stop_reason is None and (self._released_by_driver or failure is not None):
            self._wait_for_verdict(has_failed=failure is not None)
        if self._stop_reason is not None and failure is None:
            failure = Failure(self._rank, self._host, "stopped", self._stop_reason)
            self._outcome.failure = self._with_log_tail(failure)
        return self._outcome

    def finish(self) -> TrainerOutcome:
        """End the trainer: release it if the function returned, else kill it. None of its processes remains."""
        if self._outcome.failure is None:
            self._send_to_trainer({"type": "release"})
            self._wait_for_exit(_EXIT_SECONDS)
        if self._exit_message is None:
            self._fork_client.kill()
            self._wait_for_exit(_KILL_SECONDS)
        self._pipes.drain()
        if self._exit_message is not None:
            self._outcome.peak_rss = max(self._outcome.peak_rss, int(self._exit_message.get("peak_rss", 0)))
        for warning in self._logs.finish(self._handle_events):
            self._warn(warning)
        self._fork_client.close()
        if self._transfer is not None:
            self._transfer.close(_TRANSFER_SECONDS)
        self._pipes.close()
        for used in (self._probe, self._trainer):
            if used is not None:
                used.close()
        self._selector.close()
        return self._outcome

    @property
    def _is_training(self) -> bool:
        has_ended = self._outcome_message is not None or self._exit_message is not None
        lacks_rows = self._rows is not None and self._rows.error is not None
        is_over = has_ended or lacks_rows or self._formation.has_timed_out
        return not is_over and self._stop_reason is None

    def _conclude(self) -> Failure | None:
        if self._rows is not None and self._rows.error is not None:
            self._outcome.exit = type(self._rows.error).__name__
            self._outcome.failure = self._rows.failure(self._rank, self._host)
        elif self._outcome_message is None and self._formation.has_timed_out:
            self._outcome.exit = "start_timeout"
            self._outcome.failure = self._formation.failure()
        else:
            self._outcome.conclude(self._rank, self._host, self._outcome_message, self._exit_message)
        if self._outcome.failure is not None:
            self._outcome.failure = self._with_log_tail(self._outcome.failure)
        return self._outcome.failure

    def _with_log_tail(self, failure: Failure) -> Failure:
        self._pipes.drain()
        return replace(failure, log_tail=self._tail.get())

    def _announce(self, state: str, **details: object) -> None:
        """Tell the driver that this worker is done or has failed; the next hello repeats it."""
        self._link.update_hello(state=state, **details)
        if self._link.is_open:
            self._link.send({"type": state, **details})

    def _wait_for_verdict(self, *, has_failed: bool) -> None:
        ended_at = time.monotonic()
        while self._stop_reason is None and not self._released:
            has_exited = self._exit_message is not None
            if not self._driver_loss.should_wait_for_verdict(
                time.monotonic(), ended_at, has_failed=has_failed, has_exited=has_exited
            ):
                return
            self._handle_events()

    def _wait_for_exit(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._exit_message is None and time.monotonic() < end:
            self._handle_events()

    def _handle_events(self) -> None:
        """Handle pending events, or wait up to half a second for one."""
        self._report_progress()
        lost_for = self._driver_loss.seconds_lost(time.monotonic()) if self._has_channel else math.inf
        self._questions.answer_without_driver(lost_for)
        fd = self._link.fileno()  # -1 if it is closed
        if self._link.is_open:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._link.has_unsent else 0)
            self._selector.register(self._link, events, self._on_driver)
        else:
            self._reconnect()
        try:
            for key, _ in self._selector.select(self._logs.seconds_until_due(_TICK_SECONDS)):
                key.data(key.fd)
        finally:
            if fd >= 0:
                with contextlib.suppress(KeyError, ValueError):  # the link may have been closed
                    self._selector.unregister(fd)
        self._send_to_trainer(self._history.answer())

    def _report_progress(self) -> None:
        if self._rows is not None:
            self._rows.report_progress()
        if self._probe is None or not self._link.is_open:
            return
        pid = self._fork_client.trainer_pid
        self._link.send_heartbeat(**self._probe.state(pid))
        while self._transfer is not None and self._transfer.warnings:
            self._warn(self._transfer.warnings.popleft())
        stacks = self._probe.stacks(pid)
        if stacks is not None:
            self._link.send(stacks)
        self._logs.send()

    def _warn(self, text: str) -> None:
        self._outcome.warnings.append(text)
        self._link.send({"type": "warning", "text": text})

    def _reconnect(self) -> None:
        if not self._has_channel or not self._driver_loss.should_reconnect(time.monotonic()):
            return
        if self._link.connect(_RECONNECT_SECONDS):
            self._driver_loss.on_reconnected()
            self._history.resend()
            self._logs.on_reconnected()
            return
        last_activity = max(self._last_message, self._pipes.last_output)
        reason = self._driver_loss.on_connect_failed(time.monotonic(), self._link.refused_since, last_activity)
        self._stop_reason = reason or self._stop_reason

    def _on_driver(self, _: int) -> None:
        self._link.flush()
        for message in self._link.receive():
            self._logs.on_message(message)
            if message["type"] == "stop":
                self._stop_reason = str(message["reason"])
            elif message["type"] == "release":
                self._released = True
            elif message["type"] in ("epochs_taken", "stop_training"):
                self._history.taken(int(message.get("number", -1)))
                if message["stops"] != self._stops:
                    self._stops = message["stops"]
                    self._send_to_trainer({"type": "stop_training", "stops": self._stops})
            elif message["type"] == "call_answer":
                self._questions.answer(message)
            elif message["type"] == "stacks" and self._probe is not None:
                self._probe.request_stacks(self._fork_client.trainer_pid)
            elif self._rows is not None:
                self._rows.on_message(message)

    def _send_to_trainer(self, message: Message | None) -> None:
        if message is not None and self._trainer is not None:
            self._trainer.send(message)

    def _on_rows(self, _: int) -> None:
        assert self._rows is not None
        self._selector.unregister(self._rows)
        self._rows.on_received()

    def _on_trainer(self, _: int) -> None:
        if self._trainer is None or self._trainer.has_ended():
            return
        for message in self._trainer.receive():
            self._on_trainer_message(message)
        if self._trainer.has_ended():
            self._selector.unregister(self._trainer.socket)

    def _on_trainer_message(self, message: Message) -> None:
        kind = message["type"]
        self._last_message = time.monotonic()
        if kind == "outcome":
            self._outcome_message = message
        elif kind == "phase":
            self._outcome.phases[message["name"]] = message["time"]
            self._link.send(message)
        elif kind == "warning":
            self._warn(message["text"])
        elif kind == "commit" and self._trainer is not None:
            file = self._trainer.take_file()
            if self._transfer is not None:
                self._transfer.put(message["name"], file)
        elif kind == "epochs":
            self._history.put(message)
        elif kind == "forming":
            self._formation.receive(message)
        elif kind in ("call", "call_left", "barrier"):
            self._questions.put(message)
        elif self._link.is_open:
            self._link.send(message)

    def _on_fork_server(self, _: int) -> None:
        try:
            for message in self._fork_client.receive():
                if message["type"] == "exited":
                    self._exit_message = message
        except EOFError as error:
            self._exit_message = {"error": str(error)}
        if self._exit_message is not None:
            self._selector.unregister(self._fork_client)
            self._on_trainer(0)  # its last messages may still be unread
