"""Limits how long a trainer waits in TensorFlow for the other workers.

The constructor of TensorFlow's strategy has no time limit, and a process that is in it does not react to anything. The
agent therefore watches the time.
"""

import contextlib
import socket
import time
from collections.abc import Callable, Sequence

from ...errors import RendezvousTimeoutError
from ..failures import Failure
from ..wire import Message

# Time limit for finding out which workers can be reached.
_PROBE_SECONDS = 5.0


class FormationWatch:
    """Watches a trainer that waits for the others.

    Args:
        rank: This worker's rank.
        host: This worker's host.
        addresses: The ``host:port`` of all workers' TensorFlow servers, by rank.
        seconds: Time limit.
        now: The clock.
    """

    def __init__(
        self,
        rank: int,
        host: str,
        addresses: Sequence[str],
        seconds: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rank, self._host, self._addresses, self._seconds, self._now = rank, host, addresses, seconds, now
        self._since: float | None = None

    def receive(self, message: Message) -> None:
        """Handle the trainer's message that it begins to wait, or has built the strategy."""
        self._since = self._now() if message["is_entered"] else None

    @property
    def has_timed_out(self) -> bool:
        return self._since is not None and self._now() - self._since > self._seconds

    def failure(self) -> Failure:
        """Return the failure of a worker whose time is up."""
        silent = [rank for rank in self._unreachable() if rank != self._rank]
        names = ", ".join(f"rank {rank} ({self._addresses[rank]})" for rank in silent[:10])
        waits = (
            f"nothing accepts connections at {names}{', ...' if len(silent) > 10 else ''}"
            if silent
            else "the ports of all workers accept connections, but not all workers have joined"
        )
        error = RendezvousTimeoutError(
            f"Rank {self._rank} has waited in TensorFlow for the other workers for start_timeout={self._seconds:g} s: "
            f"{waits}. A worker that builds its strategy late, or not at all, keeps all others waiting. Between hosts, "
            "the workers' ports must be open (tensorflow.spark.distributor.workerPorts chooses the range), and the "
            "addresses must be those of a network that the hosts share (tensorflow.spark.distributor.workerNetwork)."
        )
        return Failure.from_exception(self._rank, self._host, "startup", error, with_traceback=False)

    def _unreachable(self) -> list[int]:
        end = self._now() + _PROBE_SECONDS
        found = []
        for rank, address in enumerate(self._addresses):
            host, _, port = address.rpartition(":")
            left = min(1.0, end - self._now())
            if left <= 0:
                break
            try:
                with contextlib.closing(socket.create_connection((host.strip("[]"), int(port)), timeout=left)):
                    pass
            except OSError:
                found.append(rank)
        return found
