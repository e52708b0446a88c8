"""The handshake on every connection between hosts: both ends prove that they hold a secret, without sending it.

In both directions, a challenge is answered with an HMAC-SHA256. The roles, both ends' numbers, the generation and both
challenges are part of what is signed, so that a response can be neither reflected nor used elsewhere. The session's
keys are derived from the secret and the challenges. Somebody who relays the handshake does not learn the keys, and
therefore cannot speak for either end afterwards.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import struct
from typing import NamedTuple

from .sockets import receive_exactly

CHALLENGE_BYTES = 32
PROOF_BYTES = 32
_NUMBER = struct.Struct(">I")
# The connecting end's answer: its proof, its number and a counter-challenge.
ANSWER_BYTES = PROOF_BYTES + _NUMBER.size + CHALLENGE_BYTES
# The number of the driver; workers use their ranks as numbers.
DRIVER = 0xFFFFFFFF


class SessionKeys(NamedTuple):
    """The keys of a connection, as seen from one of its ends; each direction has its own key."""

    sending: bytes
    receiving: bytes


class Answer(NamedTuple):
    """A connecting end's answer to a challenge.

    Attributes:
        data: The answer to send.
        proof: The proof that the accepting end must send in return.
        keys: The connection's keys, to be used only after the proof has been verified.
    """

    data: bytes
    proof: bytes
    keys: SessionKeys


class Admission(NamedTuple):
    """An accepting end's reply to a valid answer.

    Attributes:
        peer: The number of the connecting end.
        proof: The proof to send to it.
        keys: The connection's keys.
    """

    peer: int
    proof: bytes
    keys: SessionKeys


class NotAuthenticError(ConnectionError):
    """The other end does not hold the secret, or the data was changed on the way."""


class Handshake:
    """The handshakes of one end.

    Args:
        secret: The secret that only the two ends know.
        generation: Number of the group; an end that belongs to another group is rejected.
        number: This end's number: its rank, or ``DRIVER``.
    """

    def __init__(self, secret: bytes, generation: int, number: int) -> None:
        self._secret, self._generation, self._number = secret, generation, number

    def challenge(self) -> bytes:
        return secrets.token_bytes(CHALLENGE_BYTES)

    def answer(self, challenge: bytes, acceptor: int) -> Answer:
        """Answer the challenge of an accepting end."""
        counter = self.challenge()
        transcript = self._transcript(self._number, acceptor, challenge, counter)
        data = self._sign(b"connect", transcript) + _NUMBER.pack(self._number) + counter
        keys = SessionKeys(self._sign(b"key of connect", transcript), self._sign(b"key of accept", transcript))
        return Answer(data, self._sign(b"accept", transcript), keys)

    def check(self, challenge: bytes, answer: bytes) -> Admission | None:
        """Check the answer of a connecting end; return None if that end does not hold the secret."""
        (peer,) = _NUMBER.unpack_from(answer, PROOF_BYTES)
        counter = answer[PROOF_BYTES + _NUMBER.size :]
        transcript = self._transcript(peer, self._number, challenge, counter)
        if not hmac.compare_digest(answer[:PROOF_BYTES], self._sign(b"connect", transcript)):
            return None
        keys = SessionKeys(self._sign(b"key of accept", transcript), self._sign(b"key of connect", transcript))
        return Admission(peer, self._sign(b"accept", transcript), keys)

    def connect(
        self, sock: socket.socket, acceptor: int, deadline: float, proof_deadline: float | None = None
    ) -> SessionKeys:
        """Perform the connecting end's half on a socket.

        Args:
            sock: A connected socket; its timeout is changed.
            acceptor: The number of the other end.
            deadline: When to give up, by ``time.monotonic()``.
            proof_deadline: When to give up waiting for the other end's proof, if later than ``deadline``.

        Raises:
            NotAuthenticError: If the other end does not hold the secret.
            OSError, EOFError: If the connection is lost, or the time is up.
        """
        answer = self.answer(receive_exactly(sock, CHALLENGE_BYTES, deadline), acceptor)
        sock.sendall(answer.data)
        if not hmac.compare_digest(receive_exactly(sock, PROOF_BYTES, proof_deadline or deadline), answer.proof):
            raise NotAuthenticError
        return answer.keys

    def _transcript(self, connector: int, acceptor: int, challenge: bytes, counter: bytes) -> bytes:
        return struct.pack(">QII", self._generation, connector, acceptor) + challenge + counter

    def _sign(self, purpose: bytes, transcript: bytes) -> bytes:
        return hmac.digest(self._secret, purpose + b"\0" + transcript, "sha256")


def derive_secret(secret: bytes, purpose: bytes) -> bytes:
    """Derive a secret for another purpose from a given one."""
    return hmac.digest(secret, purpose, "sha256")
