"""Defines the pieces of log files that the agents send to the driver."""

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .wire import Message

# The driver acknowledges each piece before the worker sends the next one, so at most this much waits for each worker.
PIECE_BYTES = 256 << 10


@dataclass(frozen=True)
class LogPiece:
    """A part of a file below a worker's ``log_dir``, or the notice that the file is gone.

    Attributes:
        path: The file's path relative to ``log_dir``, with ``/`` between the names.
        offset: Where the data begins in the file. 0 starts the file anew, whatever the driver has under this path.
        data: The data, up to PIECE_BYTES; None if the worker has removed the file.
    """

    path: str
    offset: int = 0
    data: bytes | None = b""

    @property
    def end(self) -> int:
        return self.offset + len(self.data or b"")

    def to_message(self) -> Message:
        data = None if self.data is None else base64.b64encode(self.data).decode()
        return {"type": "log_piece", "path": self.path, "offset": self.offset, "data": data}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> "LogPiece":
        data = message["data"]
        return cls(message["path"], int(message["offset"]), None if data is None else base64.b64decode(data))


@dataclass(frozen=True)
class LogReceipt:
    """The driver's answer to a piece.

    Attributes:
        path: The piece's path.
        offset: The piece's offset.
        size: How many bytes of the file the driver now has.
        error: Why the driver rejected the piece; empty if it did not.
    """

    path: str
    offset: int
    size: int
    error: str = ""

    def to_message(self) -> Message:
        return {"type": "log_receipt", **asdict(self)}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> "LogReceipt":
        return cls(message["path"], int(message["offset"]), int(message["size"]), message["error"])
