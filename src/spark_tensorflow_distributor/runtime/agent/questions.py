"""Passes the trainer's questions about its calls to the driver, and the answers back."""

from collections.abc import Callable
from typing import Any

from ..specs import AWAY_SECONDS
from ..wire import Message
from .link import DriverLink


class CallQuestions:
    """The calls of ``fit``, ``evaluate`` and ``predict`` that a trainer announces, and the driver's answers.

    Messages in both directions may be lost with a connection. The hello of the next one therefore says which calls are
    open, and which answers they have.

    Args:
        link: The driver's channel.
        reply: Sends a message to the trainer.
    """

    def __init__(self, link: DriverLink, reply: Callable[[Message], None]) -> None:
        self._link, self._reply = link, reply
        self._number: int | None = None  # of the call whose answer the trainer waits for
        self._open: list[dict[str, Any]] = []
        self._joined = 0
        self._barrier: str | None = None

    def put(self, message: Message) -> None:
        """Tell the driver that the trainer begins or has ended a call, or that it enters or leaves Spark's barrier."""
        if message["type"] == "call":
            self._number = message["number"]
            self._open.append({**message, "state": "waiting"})
        elif message["type"] == "call_left":
            self._open = [call for call in self._open if call["number"] != message["number"]]
        else:
            self._barrier = str(message["text"]) if message["is_entered"] else None
        self._update_hello()
        if self._link.is_open:
            self._link.send(message)

    def answer(self, message: Message) -> None:
        """Pass the driver's answer to the trainer."""
        if message["number"] != self._number:  # a repeated answer
            return
        self._number = None
        for call in self._open:
            if call["number"] == message["number"]:
                call["state"] = message["how"]
        self._joined += message["how"] == "together"
        self._update_hello()
        self._reply(message)

    def answer_without_driver(self, lost_for: float) -> None:
        """Answer in place of an unreachable driver: all workers then make all calls together.

        Args:
            lost_for: How long the driver has been unreachable, in seconds.
        """
        if self._number is not None and not self._link.is_open and lost_for >= AWAY_SECONDS:
            self.answer({"type": "call_answer", "number": self._number, "how": "together"})

    def _update_hello(self) -> None:
        calls = {"open": [dict(call) for call in self._open], "joined": self._joined, "barrier": self._barrier}
        self._link.update_hello(calls=calls)
