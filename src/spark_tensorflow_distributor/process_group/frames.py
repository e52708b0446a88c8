"""Frames on the connections between the members of a process group.

Every frame begins with a header that identifies its operation, so that members that call different operations notice
this at the first frame instead of waiting for each other.
"""

from __future__ import annotations

import functools
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..transport.sealing import Buffer

# Frame type; the operation's kind, dtype, number, checksum of its details and size in bytes; length of the data.
_HEADER = struct.Struct(">4sBBxxIIQI")
HEADER_BYTES = _HEADER.size
# Maximum size of a frame's data: small enough that sending, receiving and adding overlap.
FRAME_BYTES = 256 << 10
# A frame with more data than this is bulk data: in practice, gradients, weights and checkpoints.
BULK_BYTES = 16 << 10
_MAX_FAREWELL = 64 << 10
# Maximum length of a text in a farewell, in characters, each of which may take twelve bytes in JSON.
_MAX_TEXT = 2000

_DATA, _FAREWELL = b"STDd", b"STDf"

KINDS = ("all_reduce", "all_gather", "barrier")
SUMMED = ("float32", "float64", "int32", "int64")
DTYPES = ("uint8", "float16", "bfloat16", "float32", "float64", "int32", "int64")


class NotAFrameError(Exception):
    """A peer sent bytes that are not a valid frame."""


@dataclass(frozen=True)
class Operation:
    """An operation of a group; all members must call the same operations in the same order.

    Attributes:
        number: How many operations preceded it.
        kind: One of ``KINDS``.
        dtype: One of ``DTYPES``.
        nbytes: Size of a member's data in bytes.
        details: What else must be the same on all members: the shapes and the purpose. Only their checksum travels.
        checksum: The checksum of ``details``.
    """

    number: int
    kind: str
    dtype: str
    nbytes: int
    details: str = field(default="", compare=False)
    checksum: int = -1

    def __post_init__(self) -> None:
        if self.checksum < 0:
            object.__setattr__(self, "checksum", _checksum(self.details))

    def __str__(self) -> str:
        return self.kind if self.kind == "barrier" else f"{self.kind} of {self.nbytes} bytes of {self.dtype}"


@functools.cache
def _checksum(details: str) -> int:
    return zlib.crc32(details.encode())


@dataclass(frozen=True)
class Header:
    """The header of a frame.

    Attributes:
        operation: The operation that the data belongs to; None for a farewell.
        length: Number of bytes of data that follow.
    """

    operation: Operation | None
    length: int


def data_header(operation: Operation, length: int) -> bytes:
    """Return the header of a frame with data."""
    kind, dtype = KINDS.index(operation.kind), DTYPES.index(operation.dtype)
    return _HEADER.pack(_DATA, kind, dtype, operation.number, operation.checksum, operation.nbytes, length)


def farewell(reason: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Return the header and the data of a frame that ends the connection and gives the reason."""
    shortened = {key: value[:_MAX_TEXT] if isinstance(value, str) else value for key, value in reason.items()}
    data = json.dumps(shortened).encode()
    return _HEADER.pack(_FAREWELL, 0, 0, 0, 0, 0, len(data)), data


def parse_header(data: Buffer) -> Header:
    """Parse the header of a frame.

    Raises:
        NotAFrameError: If the data is not a header.
    """
    magic, kind, dtype, number, checksum, nbytes, length = _HEADER.unpack(data)
    if magic == _FAREWELL and length <= _MAX_FAREWELL:
        return Header(None, length)
    if magic != _DATA or kind >= len(KINDS) or dtype >= len(DTYPES) or length > FRAME_BYTES:
        raise NotAFrameError(f"received {bytes(data)!r}")
    return Header(Operation(number, KINDS[kind], DTYPES[dtype], nbytes, checksum=checksum), length)


def parse_farewell(data: bytes) -> dict[str, Any]:
    """Parse the data of a farewell.

    Raises:
        NotAFrameError: If the data is not a farewell.
    """
    try:
        reason = json.loads(data)
    except ValueError as error:
        raise NotAFrameError(f"received {data[:40]!r}") from error
    if not isinstance(reason, dict):
        raise NotAFrameError(f"received {data[:40]!r}")
    return reason
