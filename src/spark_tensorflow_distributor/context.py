"""What a training function can ask about its worker."""

from dataclasses import dataclass
from typing import Any, Protocol

from .errors import DistributorError


class Checkpoints(Protocol):
    """Takes and gives what the function saves itself."""

    def save(self, state: Any) -> None: ...
    def latest(self) -> Any: ...


@dataclass(frozen=True)
class WorkerContext:
    """Where this worker stands in the run.

    Attributes:
        rank: 0 to ``world_size - 1``; rank 0 is the chief, whose value the run returns.
        world_size: number of workers.
        local_rank: 0 to ``local_world_size - 1``, among the workers of this host.
        local_world_size: number of workers on this host.
        node_rank: which host this is, counted from 0 in the order of ranks.
        attempt: 0 at first; counts the restarts.
        checkpoint_dir: where checkpoints are kept, as given to the runner, or None.
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

    def save_checkpoint(self, state: Any) -> None:
        """Save where a loop of the function's own has come to; ``fit`` needs nothing of it.

        Every rank calls it, at the same step; rank 0's state is the one that is kept. It is copied at once and written
        in the background, to ``checkpoint_dir`` or to the driver. Without ``max_restarts`` and ``checkpoint_dir``
        nothing is kept.

        Args:
            state: numbers, texts, bytes, NumPy arrays, TensorFlow's tensors and variables, and lists, tuples and dicts
                of these.

        Raises:
            CheckpointError: the state holds something else.
        """
        if _checkpoints is not None:
            _checkpoints.save(state)

    def latest_checkpoint(self) -> Any:
        """What :meth:`save_checkpoint` was given last by an earlier attempt, the same on every rank; None at first.

        Tensors and variables come back as NumPy arrays. One that is damaged is left out, with a warning, for the one
        before it.
        """
        return None if _checkpoints is None else _checkpoints.latest()


_current: WorkerContext | None = None
_checkpoints: Checkpoints | None = None


def get_context() -> WorkerContext:
    """The context of the worker that the calling training function runs in.

    Raises:
        DistributorError: called outside of a training function.
    """
    if _current is None:
        raise DistributorError(
            "get_context() answers inside a training function that MirroredStrategyRunner.run has started. "
            "There is none in this process."
        )
    return _current


def set_checkpoints(checkpoints: Checkpoints | None) -> None:
    """Set where :meth:`WorkerContext.save_checkpoint` saves."""
    global _checkpoints
    _checkpoints = checkpoints


def set_context(context: WorkerContext | None) -> WorkerContext | None:
    """Set what :func:`get_context` answers in this process; returns what it was."""
    global _current
    previous, _current = _current, context
    return previous
