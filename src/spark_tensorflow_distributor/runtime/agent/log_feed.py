"""Sends log files to the driver when nothing else is waiting to be sent."""

import time
from collections.abc import Callable

from ...formatting import mebibytes
from ..log_pieces import LogReceipt
from ..wire import Message
from .link import DriverLink
from .log_follower import LogFollower

# When the worker ends, wait this long for the driver to acknowledge another piece.
_PATIENCE_SECONDS = 10.0

_UNREACHABLE = (
    "The driver's log_dir stays empty: the executors cannot reach the driver. Open the driver's port "
    "(tensorflow.spark.distributor.driverPort) to the executors."
)


class LogFeed:
    """Feeds the driver's channel with the pieces of log files that are due.

    Args:
        directory: The trainer's ``log_dir``; None if the driver has none, so that there is nothing to send.
        link: The driver's channel, connected or not.
    """

    def __init__(self, directory: str | None, link: DriverLink) -> None:
        self._link = link
        self._follower = None if directory is None or not link.is_open else LogFollower(directory)
        self._has_unread_directory = directory is not None and self._follower is None

    def send(self) -> None:
        """Send a piece if one is due and nothing else is waiting."""
        if self._follower is not None and self._link.is_open and not self._link.has_unsent:
            piece = self._follower.next_piece()
            if piece is not None:
                self._link.send(piece.to_message())

    def on_message(self, message: Message) -> None:
        """Handle a message from the driver if it is a receipt."""
        if self._follower is not None and message["type"] == "log_receipt":
            self._follower.on_receipt(LogReceipt.from_message(message))

    def on_reconnected(self) -> None:
        """Repeat the piece that may have been lost with the connection."""
        if self._follower is not None:
            self._follower.on_reconnected()

    def seconds_until_due(self, longest: float) -> float:
        """Return how long to wait for events, at most ``longest``, before the next :meth:`send`."""
        if self._follower is None or not self._link.is_open or self._link.has_unsent:
            return longest
        return min(longest, self._follower.seconds_until_due())

    def finish(self, handle_events: Callable[[], None]) -> list[str]:
        """Send the rest, now that the trainer has ended, for as long as the driver acknowledges pieces.

        Args:
            handle_events: Waits for events, handles them, and calls :meth:`send`.

        Returns:
            A warning if the driver does not have everything in the end, else an empty list.
        """
        follower = self._follower
        if follower is None:
            return [_UNREACHABLE] if self._has_unread_directory else []
        follower.finish()
        ended_at = time.monotonic()
        while not follower.is_complete and time.monotonic() - max(ended_at, follower.last_receipt) < _PATIENCE_SECONDS:
            handle_events()
        if follower.is_complete and not follower.error:
            return []
        why = follower.error or f"it has not answered for {_PATIENCE_SECONDS:g} s"
        return [f"{mebibytes(follower.missing_bytes)} below get_context().log_dir have not reached the driver: {why}."]
