"""Sealed records on a stream of bytes, independent of any socket."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .handshake import SessionKeys
from .sealing import TAG_BYTES, Buffer, Protection, make_sealers

# Length of a record's data, most significant byte first; the data and its tag follow.
_LENGTH = struct.Struct(">I")
MAX_RECORD_BYTES = 64 << 20


class NotARecordError(ValueError):
    """The peer does not speak this protocol."""


class SealedStream:
    """Both directions of a connection whose handshake is complete.

    A record's length is not secret, and is not authenticated before the whole record has arrived. A changed length
    makes the record invalid.

    Args:
        keys: The connection's keys.
        protection: ``"privacy"`` encrypts; anything else authenticates.
    """

    def __init__(self, keys: SessionKeys, protection: Protection) -> None:
        self._outgoing, self._incoming = make_sealers(keys, protection)
        self._buffer = bytearray()

    def seal(self, data: Buffer) -> list[Buffer]:
        """Return the bytes to send for a record; records must be sent in the order of these calls.

        Raises:
            NotARecordError: If the data is larger than 64 MiB.
        """
        _check_size(len(data))
        return [_LENGTH.pack(len(data)), *self._outgoing.seal(data)]

    def feed(self, data: Buffer) -> Iterator[bytes]:
        """Add received bytes; yield the data of every record that is now complete.

        Raises:
            NotAuthenticError: If the other end has not sent this record.
            NotARecordError: If the peer does not speak this protocol.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            begin = _LENGTH.size
            end = begin + _check_size(_LENGTH.unpack_from(self._buffer)[0])
            if len(self._buffer) < end + TAG_BYTES:
                return
            sealed, tag = bytes(self._buffer[begin:end]), bytes(self._buffer[end : end + TAG_BYTES])
            del self._buffer[: end + TAG_BYTES]
            yield bytes(self._incoming.open(sealed, tag))


def _check_size(size: int) -> int:
    if size > MAX_RECORD_BYTES:
        raise NotARecordError(f"a record of {size} bytes is not one of ours")
    return size
