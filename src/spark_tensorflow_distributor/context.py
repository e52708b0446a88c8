"""The context of a worker, as its training function sees it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .errors import DistributorError


class Checkpoints(Protocol):
    """Saves and loads the training function's own checkpoints."""

    def save(self, state: object) -> None: ...
    def latest(self) -> Any: ...


class CustomLoop(Protocol):
    """Connects a custom training loop to the driver."""

    def report(self, step: int, metrics: Mapping[str, Any]) -> None: ...
    def should_stop(self) -> bool: ...


@dataclass(frozen=True)
class WorkerContext:
    """A worker's position in the run.

    Attributes:
        rank: 0 to ``world_size - 1``; rank 0 is the chief, whose return value the run returns.
        world_size: Number of workers.
        local_rank: 0 to ``local_world_size - 1``, among the workers on this host.
        local_world_size: Number of workers on this host.
        node_rank: Index of this host, from 0, in rank order.
        attempt: 0 for the first attempt; incremented by each restart.
        checkpoint_dir: The runner's ``checkpoint_dir``, or None.
        log_dir: A directory on this host; files below it appear below the runner's ``log_dir`` on the driver while they
            are written. None if the runner has no ``log_dir``. In ``local_mode`` it is the runner's ``log_dir`` itself.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    attempt: int = 0
    checkpoint_dir: str | None = None
    log_dir: str | None = None

    @property
    def is_chief(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def save_checkpoint(self, state: object) -> None:
        """Save the progress of a custom training loop; ``fit`` does not need it.

        Call it on every rank, at the same step; rank 0's state is kept. The state is copied immediately and written in
        the background, to ``checkpoint_dir`` or to the driver. Nothing is kept if neither ``max_restarts`` nor
        ``checkpoint_dir`` is set; in ``local_mode``, only ``checkpoint_dir`` counts.

        Args:
            state: Numbers, strings, bytes, NumPy arrays, TensorFlow tensors and variables, and lists, tuples and dicts
                of these.

        Raises:
            CheckpointError: The state contains a value of another type.
        """
        if _checkpoints is not None:
            _checkpoints.save(state)

    def latest_checkpoint(self) -> Any:
        """Return the last state that an earlier attempt passed to :meth:`save_checkpoint`, or None if there is none.

        Every rank gets the same state; tensors and variables come back as NumPy arrays. A damaged checkpoint is skipped
        with a warning, in favour of the one before it.
        """
        return None if _checkpoints is None else _checkpoints.latest()

    def report(self, step: int, **metrics: Any) -> None:
        """Report metrics of a custom training loop; ``fit`` does not need it.

        Rank 0's metrics appear in ``runner.report.history`` and are passed to the run's callbacks. The call does
        nothing on other ranks, so it may be made on all of them. Metrics are sent in the background, several times a
        second.

        Args:
            step: Number of the step or epoch, as the loop counts it.
            **metrics: Numbers by name; scalar arrays and tensors are converted.

        Raises:
            ConfigurationError: The step or a metric is not a number.
        """
        if _custom_loop is not None:
            _custom_loop.report(step, metrics)

    def should_stop(self) -> bool:
        """Return whether a custom training loop should end now; ``fit`` ends by itself.

        The result is True after ``RunHandle.stop()`` or an interrupt in a notebook, and once a callback's
        ``on_epoch_end`` has returned True for metrics of :meth:`report`. This is a collective operation: all ranks call
        it at the same step and get the same answer. With ``use_custom_strategy``, call it in your strategy's scope.

        Raises:
            ConfigurationError: With ``use_custom_strategy``, the call is made outside of the strategy's scope.
        """
        return _custom_loop is not None and _custom_loop.should_stop()


_current: WorkerContext | None = None
_checkpoints: Checkpoints | None = None
_custom_loop: CustomLoop | None = None


def get_context() -> WorkerContext:
    """Return the context of the worker that the calling training function runs in.

    Raises:
        DistributorError: The call is made outside of a training function.
    """
    if _current is None:
        raise DistributorError(
            "get_context() works only inside a training function that MirroredStrategyRunner.run has started. "
            "No such function is running in this process."
        )
    return _current


def set_context(context: WorkerContext | None) -> WorkerContext | None:
    """Set what :func:`get_context` returns in this process; return the previous context."""
    global _current
    previous, _current = _current, context
    return previous


def set_checkpoints(checkpoints: Checkpoints | None) -> Checkpoints | None:
    """Set where :meth:`WorkerContext.save_checkpoint` saves in this process; return what was set before."""
    global _checkpoints
    previous, _checkpoints = _checkpoints, checkpoints
    return previous


def set_custom_loop(loop: CustomLoop | None) -> CustomLoop | None:
    """Set what :meth:`WorkerContext.report` and ``should_stop`` use in this process; return what was set before."""
    global _custom_loop
    previous, _custom_loop = _custom_loop, loop
    return previous
