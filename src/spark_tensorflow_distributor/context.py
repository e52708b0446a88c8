"""What a training function can ask about its worker."""

from dataclasses import dataclass
from typing import Any, Protocol

from .errors import DistributorError


class Checkpoints(Protocol):
    """Saves and loads the training function's own checkpoints."""

    def save(self, state: object) -> None: ...
    def latest(self) -> Any: ...


@dataclass(frozen=True)
class WorkerContext:
    """A worker's position in the run.

    Attributes:
        rank: 0 to ``world_size - 1``; rank 0 is the chief, whose return value the run returns.
        world_size: Number of workers.
        local_rank: 0 to ``local_world_size - 1``, among the workers on this host.
        local_world_size: Number of workers on this host.
        node_rank: Number of this host, from 0 in the order of ranks.
        attempt: 0 for the first attempt; incremented by each restart.
        checkpoint_dir: The runner's ``checkpoint_dir``, or None.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    attempt: int = 0
    checkpoint_dir: str | None = None

    @property
    def is_chief(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def save_checkpoint(self, state: object) -> None:
        """Save the progress of a custom training loop; ``fit`` does not need it.

        Every rank calls it, at the same step; rank 0's state is the one that is kept. The state is copied immediately
        and written in the background, to ``checkpoint_dir`` or to the driver. Without ``max_restarts`` and
        ``checkpoint_dir`` nothing is kept; in ``local_mode``, without ``checkpoint_dir``.

        Args:
            state: Numbers, strings, bytes, NumPy arrays, TensorFlow tensors and variables, and lists, tuples and dicts
                of these.

        Raises:
            CheckpointError: The state holds something else.
        """
        if _checkpoints is not None:
            _checkpoints.save(state)

    def latest_checkpoint(self) -> Any:
        """Return the last state that an earlier attempt passed to :meth:`save_checkpoint`, or None if there is none.

        Every rank gets the same state; tensors and variables come back as NumPy arrays. A damaged checkpoint is skipped
        with a warning, in favour of the one before it.
        """
        return None if _checkpoints is None else _checkpoints.latest()


_current: WorkerContext | None = None
_checkpoints: Checkpoints | None = None


def get_context() -> WorkerContext:
    """Return the context of the worker that the calling training function runs in.

    Raises:
        DistributorError: Called outside of a training function.
    """
    if _current is None:
        raise DistributorError(
            "get_context() works only inside a training function that MirroredStrategyRunner.run has started. "
            "No such function is running in this process."
        )
    return _current


def set_context(context: WorkerContext | None) -> WorkerContext | None:
    """Set what :func:`get_context` returns in this process; returns the previous context."""
    global _current
    previous, _current = _current, context
    return previous


def set_checkpoints(checkpoints: Checkpoints | None) -> Checkpoints | None:
    """Set where :meth:`WorkerContext.save_checkpoint` saves in this process; returns what was set before."""
    global _checkpoints
    previous, _checkpoints = _checkpoints, checkpoints
    return previous
