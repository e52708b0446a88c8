"""What a training function can ask about its worker."""

from dataclasses import dataclass

from ..errors import DistributorError


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
        checkpoint_dir: where resume state belongs, as given to the runner, or None.
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


_current: WorkerContext | None = None


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


def set_context(context: WorkerContext | None) -> WorkerContext | None:
    """Set what :func:`get_context` answers in this process; returns what it was."""
    global _current
    previous, _current = _current, context
    return previous
