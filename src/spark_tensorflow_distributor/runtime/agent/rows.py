"""Delivers a worker's rows from Spark to its trainer."""

import json
import socket
import tempfile
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from ...errors import BrokenInputError, DistributorError
from ..barrier import AllGather, keep_alive
from ..failures import Failure
from ..wire import Message, send_files
from .link import DriverLink

if TYPE_CHECKING:  # this imports NumPy, which a run without DataFrames does not need
    from ...data.intake import RowReceiver


class RowDelivery:
    """Passes a worker's shard to its trainer once it is complete.

    Args:
        receiver: Receives the rows from Spark.
        link: The driver's channel, through which the ranks balance their shards.
        all_gather: Spark's allGather, if some ranks cannot reach the driver; else None.
        heartbeat: Sends a heartbeat; called while this waits for other ranks in allGather.

    Attributes:
        error: Why the rows cannot be delivered, or None.
    """

    def __init__(
        self,
        receiver: "RowReceiver",
        link: DriverLink,
        all_gather: AllGather | None,
        heartbeat: Callable[[], None],
    ) -> None:
        self._receiver, self._link, self._all_gather, self._heartbeat = receiver, link, all_gather, heartbeat
        self._trainer: socket.socket | None = None
        self._passed: list[Message] = []
        self._is_done = False
        self.error: Exception | None = None

    def start(self, trainer: socket.socket) -> None:
        """Set the connection to the trainer, which waits for the rows at the other end."""
        self._trainer = trainer

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when :meth:`on_received` is due."""
        return self._receiver.fileno()

    def report_progress(self) -> None:
        """Report progress to the driver if a report is due."""
        if message := self._receiver.progress():
            self._link.send(message)

    def on_received(self) -> None:
        """Balance the shards, now that Spark has delivered all rows or failed to."""
        try:
            messages = self._receiver.acknowledge()
            if self._all_gather is not None:
                keep_alive(partial(self._receiver.balance_by_all_gather, self._all_gather), self._heartbeat)
                messages = []
        except Exception as error:
            self.error = error
            return
        for message in messages:
            if message["type"] == "rows":
                self._link.update_hello(facts=message["facts"])
            self._send(message)
        self._deliver()

    def on_message(self, message: Message) -> None:
        """Handle a message from the driver."""
        for reply in self._receiver.on_message(message):
            self._send(reply)
        self._deliver()

    def _send(self, message: Message) -> None:
        if message["type"] == "pass":
            self._passed.append(message)
            # The next connection's hello repeats the rows, in case this connection is lost.
            self._link.update_hello(passed=self._passed)
        self._link.send(message)

    def _deliver(self) -> None:
        if not self._receiver.is_complete or self._is_done or self._trainer is None:
            return
        self._is_done = True
        try:
            layouts, files = self._receiver.layout()
            # The layouts travel as a file: a long message would block this process until the trainer reads it.
            with tempfile.TemporaryFile() as layout_file:
                layout_file.write(json.dumps([layout.to_json() for layout in layouts]).encode())
                layout_file.flush()
                send_files(self._trainer, {"type": "data"}, [layout_file, *files])
        except ConnectionError:
            return  # the trainer has ended, and its exit is reported
        except (OSError, DistributorError) as error:
            self.error = error

    def failure(self, rank: int, host: str) -> Failure:
        """Describe :attr:`error` as the worker's failure."""
        assert self.error is not None
        kind = "input" if isinstance(self.error, BrokenInputError) else "startup"
        return Failure.from_exception(rank, host, kind, self.error, with_traceback=False)
