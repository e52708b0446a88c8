"""Passes the trainer's questions about its calls to the driver, and the answers back."""

from collections.abc import Callable

from ..wire import Message
from .link import DriverLink


class CallQuestions:
    """The question of a trainer that is about to call ``fit``, ``evaluate`` or ``predict``.

    Args:
        link: The driver's channel.
        reply: Sends a message to the trainer.
    """

    def __init__(self, link: DriverLink, reply: Callable[[Message], None]) -> None:
        self._link, self._reply = link, reply
        self._number: int | None = None  # of the call for whose answer the trainer waits

    def put(self, message: Message) -> None:
        """Pass a question to the driver."""
        self._number = message["number"]
        if self._link.is_open:
            self._link.send(message)

    def answer(self, message: Message) -> None:
        """Pass the driver's answer to the trainer."""
        if message["number"] == self._number:
            self._number = None
            self._reply(message)

    def answer_without_driver(self) -> None:
        """Answer in place of a driver that cannot be reached: all workers make all calls together."""
        if self._number is not None and not self._link.is_open:
            self.answer({"type": "call_answer", "number": self._number, "how": "together"})
