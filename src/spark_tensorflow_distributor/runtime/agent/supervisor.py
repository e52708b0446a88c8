"""Starts one trainer, and watches it to its end.

One thread, one selector: the trainer's output, its messages, the fork server's word of its exit, the driver's
commands. What comes out is an :class:`TrainerOutcome`; nothing here raises for what the trainer does.
"""

import contextlib
import os
import selectors
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, BinaryIO

from ..failures import Failure
from ..specs import TrainerSpec
from ..wire import FrameReader, frame
from .checkpoints import CheckpointTransfer
from .fork_client import ForkClient
from .link import DriverLink
from .output import Pipes, Tail
from .process import TrainerOutcome, TrainerProbe, explain_exit
from .rows import RowDelivery

_TICK_SECONDS = 0.5
# After the release, a trainer may run its exit handlers for as long as this.
_EXIT_SECONDS = 10.0
_KILL_SECONDS = 5.0
# A failed worker waits for the driver's word for as long as this; the driver waits about a second for the others.
_VERDICT_SECONDS = 10.0
# A worker that has lost the driver for good stays this long for its peers' sake.
_ORPHAN_SECONDS = 10.0
# A worker that has lost the driver, and whose training stands still for so long, is alone in the world: its host's
# network is down, or the driver is gone and the group with it.
_ALONE_SECONDS = 60.0
# A checkpoint that is on its way when the worker ends may take this long to arrive.
_COURIER_SECONDS = 3.0
# Under Spark Connect: a driver that refuses connections for so long is dead.
_DEAD_DRIVER_SECONDS = 5.0


class Supervisor:
    """Watches one trainer.

    Args:
        rank: this worker's rank, and ``host``, for what it reports.
        launcher: a connection to the fork server.
        link: the driver's channel, connected or not.
        tail: takes the last output lines.
        driver_is_client, log_to_executor: see ``TaskSpec``.
        ends_together: the driver says when all have returned; else the ranks ask each other.
        rows: the rows that the trainer waits for, or None.
        courier: takes checkpoints to the driver, or None.
    """

    def __init__(
        self,
        rank: int,
        host: str,
        launcher: ForkClient,
        link: DriverLink,
        tail: Tail,
        *,
        driver_is_client: bool,
        log_to_executor: bool,
        ends_together: bool,
        rows: RowDelivery | None = None,
        courier: CheckpointTransfer | None = None,
    ) -> None:
        self._rank, self._host = rank, host
        self._launcher, self._link, self._tail = launcher, link, tail
        self._gone_means_dead = driver_is_client
        self._ends_together = ends_together
        self._rows, self._courier = rows, courier
        self._files: list[int] = []
        self._vitals: TrainerProbe | None = None
        self._has_channel = link.is_open
        self._selector = selectors.DefaultSelector()
        self._reader = FrameReader()
        self._pipes = Pipes(self._selector, link, tail, log_to_executor=log_to_executor)
        self._control: socket.socket | None = None
        self._outcome: dict[str, Any] | None = None
        self._exited: dict[str, Any] | None = None
        self._released = False
        self._stopped: str | None = None
        self._ending = TrainerOutcome()
        self._next_connect = 0.0
        self._lost_since: float | None = None
        self._last_sign = time.monotonic()

    def start(
        self,
        spec: TrainerSpec,
        payload: bytes,
        directory: str,
        port: socket.socket,
        checkpoints: Sequence[BinaryIO] = (),
    ) -> BinaryIO:
        """Have the trainer started; returns the file into which it will write its result.

        Args:
            spec: of the trainer.
            payload: the pickled program.
            directory: where the two files live, without a name: nothing of them can stay behind.
            port: the socket that holds this worker's port.
            checkpoints: files that the trainer may begin with, in the order of the spec's names.
        """
        out_write, err_write = self._pipes.open("stdout"), self._pipes.open("stderr")
        ours, theirs = socket.socketpair()
        result: BinaryIO = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 (outlives this function)
        self._vitals = TrainerProbe(directory)
        with tempfile.TemporaryFile(dir=directory) as program:
            program.write(payload)
            program.flush()
            fds = [out_write, err_write, theirs.fileno(), program.fileno(), result.fileno(), port.fileno()]
            fds += [file.fileno() for file in (self._vitals.file, *checkpoints)]
            self._launcher.launch(spec, fds)
        os.close(out_write)
        os.close(err_write)
        theirs.close()
        port.close()
        ours.setblocking(False)
        self._control = ours
        self._selector.register(ours, selectors.EVENT_READ, self._on_control)
        self._selector.register(self._launcher, selectors.EVENT_READ, self._on_server)
        if self._rows is not None:
            self._rows.start(ours)
            self._selector.register(self._rows, selectors.EVENT_READ, self._on_rows)
        return result

    def watch(self) -> TrainerOutcome:
        """Until the function has returned or failed on this rank, and the group knows what to do about it.

        The trainer is still alive then if it returned; :meth:`finish` ends it.
        """
        while self._outcome is None and self._exited is None and self._stopped is None and not self._has_no_rows:
            self._turn()
        if self._exited is not None:
            self._pipes.drain()
        failure = self._conclude()
        if failure is None and self._stopped is None:
            self._report({"type": "done"}, state="done")
        elif failure is not None:
            self._report({"type": "failed", "failure": failure.to_json()}, state="failed")
        if self._has_channel and self._stopped is None and (self._ends_together or failure is not None):
            self._wait_for_verdict(failure is not None)
        if self._stopped is not None and failure is None:
            failure = self._failed("stopped", self._stopped)
        self._ending.failure = failure
        return self._ending

    def finish(self) -> TrainerOutcome:
        """End the trainer: kindly if it returned, else by SIGKILL. Afterwards no process of it lives."""
        if self._ending.failure is None and self._control is not None:
            with contextlib.suppress(OSError):
                self._control.sendall(frame({"type": "release"}))
            self._turn_until_exit(_EXIT_SECONDS)
        if self._exited is None:
            self._launcher.kill()
            self._turn_until_exit(_KILL_SECONDS)
        self._pipes.drain()
        if self._exited is not None:
            self._ending.peak_rss = max(self._ending.peak_rss, int(self._exited.get("peak_rss", 0)))
        self._launcher.close()
        if self._courier is not None:
            self._courier.close(_COURIER_SECONDS)
        if self._vitals is not None:
            self._vitals.close()
        self._pipes.close()
        for fd in self._files:
            os.close(fd)
        if self._control is not None:
            self._control.close()
        self._selector.close()
        return self._ending

    def _turn_until_exit(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._exited is None and time.monotonic() < end:
            self._turn()

    def _turn(self) -> None:
        """Handle what has happened, or wait for half a second."""
        if self._rows is not None:
            self._rows.tell()
        self._tell_vitals()
        if self._link.is_open:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._link.has_waiting else 0)
            self._selector.register(self._link, events, self._on_driver)
            fd = self._link.fileno()
        else:
            fd = -1
            self._reconnect()
        try:
            for key, _ in self._selector.select(_TICK_SECONDS):
                key.data(key.fd)
        finally:
            if fd >= 0:
                with contextlib.suppress(KeyError, ValueError):  # closed meanwhile
                    self._selector.unregister(fd)

    def _tell_vitals(self) -> None:
        if self._vitals is None or not self._link.is_open:
            return
        pid = self._launcher.trainer
        self._link.tell_alive(**self._vitals.facts(pid))
        while self._courier is not None and self._courier.warnings:
            self.warn(self._courier.warnings.popleft())
        answer = self._vitals.answer(pid)
        if answer is not None:
            self._link.send(answer)

    def _reconnect(self) -> None:
        if not self._has_channel or time.monotonic() < self._next_connect:
            return
        if self._lost_since is None:
            self._lost_since = time.monotonic()
        if self._link.connect(0.5):  # no longer: the trainer's output waits meanwhile
            self._lost_since = None
            return
        refused = self._link.refused_since
        if self._gone_means_dead and refused is not None and time.monotonic() - refused > _DEAD_DRIVER_SECONDS:
            self._stopped = "The driver has ended."
        alone_since = max(self._lost_since, self._last_sign, self._pipes.last_sign)
        if time.monotonic() - alone_since > _ALONE_SECONDS:
            self._stopped = f"The driver cannot be reached, and training stood still for {_ALONE_SECONDS:g} s."
        self._next_connect = time.monotonic() + 1.0

    def _on_driver(self, _: int) -> None:
        self._link.flush()
        for message in self._link.receive():
            if message["type"] == "stop":
                self._stopped = str(message["reason"])
            elif message["type"] == "release":
                self._released = True
            elif message["type"] == "stacks" and self._vitals is not None:
                self._vitals.ask(self._launcher.trainer)
            elif self._rows is not None:
                self._rows.on_message(message)

    @property
    def _has_no_rows(self) -> bool:
        return self._rows is not None and self._rows.error is not None

    def _on_rows(self, _: int) -> None:
        assert self._rows is not None
        self._selector.unregister(self._rows)
        self._rows.on_rows()

    def _on_control(self, _: int) -> None:
        if self._control is None:
            return
        try:
            data, files, _, _ = socket.recv_fds(self._control, 1 << 16, 16)
        except BlockingIOError:
            return
        except OSError:
            data, files = b"", []
        self._files += files
        if not data:
            self._selector.unregister(self._control)
            return
        for message in self._reader.feed(data):
            self._on_trainer_message(message)

    def _on_trainer_message(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        self._last_sign = time.monotonic()
        if kind == "outcome":
            self._outcome = message
        elif kind == "phase":
            self._ending.phases[message["name"]] = message["time"]
            self._link.send(message)
        elif kind == "warning":
            self.warn(message["text"])
        elif kind == "commit":
            file = os.fdopen(self._files.pop(0), "rb")
            if self._courier is not None:
                self._courier.put(message["name"], file)
        elif self._link.is_open:
            self._link.send(message)

    def warn(self, text: str) -> None:
        """Tell the user."""
        self._ending.warnings.append(text)
        self._link.send({"type": "warning", "text": text})

    def _on_server(self, _: int) -> None:
        try:
            for message in self._launcher.receive():
                if message["type"] == "exited":
                    self._exited = message
        except EOFError as error:
            self._exited = {"error": str(error)}
        if self._exited is not None:
            self._selector.unregister(self._launcher)
            # What the trainer said last may still be unread.
            if self._control is not None:
                with contextlib.suppress(KeyError, ValueError):
                    self._on_control(0)

    def _conclude(self) -> Failure | None:
        """What the trainer's outcome or exit means."""
        outcome, exited = self._outcome, self._exited
        if self._rows is not None and self._rows.error is not None:
            self._ending.exit = type(self._rows.error).__name__
            return self._with_log_tail(self._rows.failure(self._rank, self._host))
        if outcome is not None and "failure" in outcome:
            failure = Failure.from_json(outcome["failure"])
            self._ending.exit = failure.message.split("\n")[0][:200]
            return self._with_log_tail(failure)
        if outcome is not None:
            self._ending.result_bytes = int(outcome.get("size", 0))
            return None
        if exited is None:
            self._ending.exit = "stopped"
            return None
        if "error" in exited:
            self._ending.exit = exited["error"]
            return self._failed("signal", f"The trainer is gone: {exited['error']}. It probably ran out of memory.")
        self._ending.peak_rss = int(exited.get("peak_rss", 0))
        kind, self._ending.exit, message = explain_exit(int(exited["code"]), self._ending.peak_rss)
        return self._failed(kind, message)

    def _failed(self, kind: str, message: str) -> Failure:
        return self._with_log_tail(Failure(self._rank, self._host, kind, message))

    def _with_log_tail(self, failure: Failure) -> Failure:
        self._pipes.drain()
        return replace(failure, log_tail=self._tail.get())

    def _report(self, message: dict[str, Any], *, state: str) -> None:
        self._link.update_hello(state=state, **{k: v for k, v in message.items() if k != "type"})
        if self._link.is_open:
            self._link.send(message)

    def _wait_for_verdict(self, failed: bool) -> None:
        """A worker that returned stays until all have; one that failed until the driver has heard the others."""
        started = time.monotonic()
        while self._stopped is None and not self._released:
            if failed and time.monotonic() - started > _VERDICT_SECONDS:
                return
            if self._lost_since is not None and time.monotonic() - max(self._lost_since, started) > _ORPHAN_SECONDS:
                return
            if self._exited is not None and not failed:
                return
            self._turn()
