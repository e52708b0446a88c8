"""Sends the entries of the run's history to the driver, so that none is lost with a connection."""

from collections import deque

from ..wire import Message
from .link import DriverLink

# How many messages may wait while the driver is unreachable; beyond that, the oldest are dropped.
_MAX_WAITING = 20_000


class HistoryRelay:
    """Keeps every message until the driver has acknowledged it.

    Messages are numbered, so that the driver recognises those that it gets twice.

    Args:
        link: The driver's channel.

    Attributes:
        question: Number of the question whose answer the trainer waits for; None if it waits for none.
    """

    def __init__(self, link: DriverLink) -> None:
        self._link = link
        self._sent = 0
        self._waiting: deque[Message] = deque(maxlen=_MAX_WAITING)
        self.question: int | None = None

    @property
    def waiting(self) -> list[Message]:
        """The messages that the driver has not acknowledged."""
        return list(self._waiting)

    def put(self, message: Message) -> None:
        """Number a message with entries, and send it."""
        numbered = {**message, "number": self._sent}
        self._sent += 1
        self._waiting.append(numbered)
        self.question = message.get("question", self.question)
        if self._link.is_open:
            self._link.send(numbered)

    def resend(self) -> None:
        """Repeat the messages that the driver has not acknowledged, on a new connection."""
        for message in self._waiting:
            self._link.send(message)

    def taken(self, number: int) -> None:
        """Forget the messages up to this number."""
        while self._waiting and self._waiting[0]["number"] <= number:
            self._waiting.popleft()

    def answer(self) -> Message | None:
        """Return the answer for the trainer once the driver has acknowledged its epoch or is unreachable; else None."""
        if self.question is None or (
            self._link.is_open and any(each.get("question") == self.question for each in self._waiting)
        ):
            return None
        question, self.question = self.question, None
        return {"type": "answer", "question": question}
