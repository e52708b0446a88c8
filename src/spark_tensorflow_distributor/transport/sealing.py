"""Protects the data that travels on a connection after its handshake.

Each direction has its own key, and counts its records. The counter is part of what is authenticated, so a record that
was changed, repeated, left out, reordered or sent back is detected. Records are authenticated with HMAC-SHA256 or, if
they must also be private, encrypted with AES-256-GCM, which needs the package ``cryptography``.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import struct
from typing import Literal, Protocol, TypeAlias

from ..errors import EncryptionUnsupportedError
from .handshake import NotAuthenticError, SessionKeys

#: ``"light"``: authenticate records, except for bulk data. ``"integrity"``: authenticate all records. ``"privacy"``:
#: encrypt and authenticate all records.
Protection: TypeAlias = Literal["light", "integrity", "privacy"]
Buffer: TypeAlias = bytes | bytearray | memoryview

TAG_BYTES = 16
INSTALL_COMMAND = 'pip install "spark-tensorflow-distributor[encryption]"'
_COUNTER = struct.Struct(">Q")
# Up to this size, a copy is cheaper than setting up a cipher that works in place.
_SMALL_BYTES = 4096


class Sealer(Protocol):
    """Protects one direction of a connection. Both ends must call its methods in the order of the records."""

    def seal(self, data: Buffer, *, bulk: bool = False) -> list[Buffer]:
        """Return what to send in place of a record: data of the same size, and a tag of ``tag_bytes``."""

    def open(self, data: Buffer, tag: Buffer, *, bulk: bool = False) -> Buffer:
        """Return the record that was sealed.

        Raises:
            NotAuthenticError: If it is not the record that the other end sealed next.
        """

    def open_in_place(self, data: memoryview, tag: Buffer, *, bulk: bool = False) -> None:
        """Replace received data with the record that was sealed; raise the same errors as :meth:`open`."""

    def tag_bytes(self, *, bulk: bool = False) -> int:
        """Return the size of a record's tag, in bytes."""


def make_sealers(keys: SessionKeys, protection: Protection) -> tuple[Sealer, Sealer]:
    """Return the sealers for an end's outgoing and incoming data.

    Raises:
        EncryptionUnsupportedError: If ``protection`` is ``"privacy"`` and the package ``cryptography`` is missing.
    """
    if protection == "privacy":
        return Encryption(keys.sending), Encryption(keys.receiving)
    spares_bulk = protection == "light"
    return (
        Authentication(keys.sending, spares_bulk=spares_bulk),
        Authentication(keys.receiving, spares_bulk=spares_bulk),
    )


class NoSealer:
    """Protects nothing; for connections within a host."""

    def seal(self, data: Buffer, *, bulk: bool = False) -> list[Buffer]:
        return [data]

    def open(self, data: Buffer, tag: Buffer, *, bulk: bool = False) -> Buffer:
        return data

    def open_in_place(self, data: memoryview, tag: Buffer, *, bulk: bool = False) -> None:
        pass

    def tag_bytes(self, *, bulk: bool = False) -> int:
        return 0


class Authentication:
    """Authenticates records with HMAC-SHA256, truncated to 16 bytes.

    Args:
        key: The key of this direction.
        spares_bulk: Whether to leave bulk data unauthenticated.
    """

    def __init__(self, key: bytes, *, spares_bulk: bool = False) -> None:
        self._keyed = hmac.new(key, digestmod=hashlib.sha256)
        self._spares_bulk = spares_bulk
        self._count = 0

    def seal(self, data: Buffer, *, bulk: bool = False) -> list[Buffer]:
        return [data] if bulk and self._spares_bulk else [data, self._tag(data)]

    def open(self, data: Buffer, tag: Buffer, *, bulk: bool = False) -> Buffer:
        if not (bulk and self._spares_bulk) and not hmac.compare_digest(self._tag(data), tag):
            raise NotAuthenticError
        return data

    def open_in_place(self, data: memoryview, tag: Buffer, *, bulk: bool = False) -> None:
        self.open(data, tag, bulk=bulk)

    def tag_bytes(self, *, bulk: bool = False) -> int:
        return 0 if bulk and self._spares_bulk else TAG_BYTES

    def _tag(self, data: Buffer) -> bytes:
        tag = self._keyed.copy()
        tag.update(_COUNTER.pack(self._count))
        tag.update(data)
        self._count += 1
        return tag.digest()[:TAG_BYTES]


class Encryption:
    """Encrypts and authenticates records with AES-256-GCM; the counter is the nonce.

    Args:
        key: The key of this direction, 32 bytes.

    Raises:
        EncryptionUnsupportedError: If the package ``cryptography`` is not installed here.
    """

    def __init__(self, key: bytes) -> None:
        require_encryption()
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers import AEADDecryptionContext, Cipher, algorithms, modes
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._invalid, self._small = InvalidTag, AESGCM(key)
        self._count = 0

        def decryptor(nonce: bytes, tag: bytes) -> AEADDecryptionContext:  # unlike AESGCM, it works in place
            return Cipher(algorithms.AES(key), modes.GCM(nonce, tag)).decryptor()

        self._decryptor = decryptor

    def seal(self, data: Buffer, *, bulk: bool = False) -> list[Buffer]:
        return [self._small.encrypt(self._nonce(), data, None)]

    def open(self, data: Buffer, tag: Buffer, *, bulk: bool = False) -> Buffer:
        try:
            return self._small.decrypt(self._nonce(), b"".join((data, tag)), None)
        except self._invalid as error:
            raise NotAuthenticError from error

    def open_in_place(self, data: memoryview, tag: Buffer, *, bulk: bool = False) -> None:
        if len(data) <= _SMALL_BYTES:
            data[:] = self.open(data, tag)
            return
        cipher = self._decryptor(self._nonce(), bytes(tag))
        cipher.update_into(data, data)
        try:
            cipher.finalize()
        except self._invalid as error:
            raise NotAuthenticError from error

    def tag_bytes(self, *, bulk: bool = False) -> int:
        return TAG_BYTES

    def _nonce(self) -> bytes:
        nonce = b"\0\0\0\0" + _COUNTER.pack(self._count)
        self._count += 1
        return nonce


@functools.cache
def can_encrypt() -> bool:
    """Return whether the package ``cryptography`` can be imported here."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        return False
    return AESGCM is not None


def require_encryption() -> None:
    """Check that this process can encrypt.

    Raises:
        EncryptionUnsupportedError: If the package ``cryptography`` is not installed here.
    """
    if not can_encrypt():
        raise EncryptionUnsupportedError(
            "The run's traffic must be encrypted, but the package 'cryptography' is not installed in this Python. Run "
            f"`{INSTALL_COMMAND}` on the driver and on all executors."
        )
