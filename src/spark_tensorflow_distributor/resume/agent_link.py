"""The connection from training to its agent, as this package uses it."""

from typing import BinaryIO, Protocol

from .settings import Message


class AgentLink(Protocol):
    """The connection to the agent."""

    def send(self, message: Message) -> None:
        """Send a message."""

    def warn(self, text: str) -> None:
        """Show a warning on the driver."""

    def send_file(self, message: Message, file: BinaryIO) -> None:
        """Send a message with an open file."""

    def end_epoch(self, entry: Message) -> None:
        """Report an epoch, and give the run's callbacks time to decide whether to train another one."""

    def should_stop(self, fit: int | None) -> bool:
        """Return, without waiting, whether the driver has asked to end this ``fit``."""
