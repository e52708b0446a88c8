"""From Spark's rows to the trainer's files: what the supervisor has to do with them."""

import json
import socket
import tempfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import BrokenInputError, DistributorError
from ..failures import Failure
from ..wire import send_files
from .link import DriverLink

if TYPE_CHECKING:  # with NumPy, which a run without DataFrames does without
    from ...data.intake import RowReceiver


class RowDelivery:
    """Hands the rows of one worker to its trainer, once they are in and shared out.

    Args:
        intake: takes the rows from Spark.
        link: the driver's channel, by which the ranks share them out.
        all_gather: Spark's, for ranks that met without the driver; else None.

    Attributes:
        error: why there will be no rows, or None.
    """

    def __init__(self, intake: "RowReceiver", link: DriverLink, all_gather: Callable[[str], list[str]] | None) -> None:
        self._intake, self._link, self._all_gather = intake, link, all_gather
        self._trainer: socket.socket | None = None
        self._passed: list[Mapping[str, Any]] = []
        self._is_done = False
        self.error: Exception | None = None

    def start(self, trainer: socket.socket) -> None:
        """Name the connection to the trainer, which waits for the rows at the other end."""
        self._trainer = trainer

    def fileno(self) -> int:
        """Readable when :meth:`on_rows` is due."""
        return self._intake.fileno()

    def tell(self) -> None:
        """Give the driver a sign of life, where one is due."""
        if sign := self._intake.progress():
            self._link.send(sign)

    def on_rows(self) -> None:
        """Spark has handed over all rows, or could not."""
        try:
            messages = self._intake.acknowledge()
            if self._all_gather is not None:
                self._intake.balance_by_all_gather(self._all_gather)
                messages = []
        except Exception as error:
            self.error = error
            return
        for message in messages:
            if message["type"] == "rows":
                self._link.update_hello(facts=message["facts"])
            self._send(message)
        self._finish()

    def on_message(self, message: Mapping[str, Any]) -> None:
        """A message of the driver's."""
        for each in self._intake.on_message(message):
            self._send(each)
        self._finish()

    def _send(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "pass":
            self._passed.append(message)
            # Said again on a new connection, should this one be lost.
            self._link.update_hello(passed=self._passed)
        self._link.send(message)

    def _finish(self) -> None:
        """Once the share is whole, hand it to the trainer."""
        if not self._intake.is_complete or self._is_done or self._trainer is None:
            return
        self._is_done = True
        try:
            layouts, files = self._intake.layout()
            # As a file, because a long message to a trainer that does not read yet would hold this process up.
            with tempfile.TemporaryFile() as plan:
                plan.write(json.dumps([layout.to_json() for layout in layouts]).encode())
                plan.flush()
                send_files(self._trainer, {"type": "data"}, [plan, *files])
        except ConnectionError:
            return  # a trainer that is gone tells so by its exit
        except (OSError, DistributorError) as error:
            self.error = error

    def failure(self, rank: int, host: str) -> Failure:
        """Describe :attr:`error` as the worker's failure."""
        assert self.error is not None
        kind = "input" if isinstance(self.error, BrokenInputError) else "startup"
        return Failure.from_exception(rank, host, kind, self.error, with_traceback=False)
