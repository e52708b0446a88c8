"""The random generators of a resumed ``fit``."""

from collections.abc import Mapping
from typing import Any

from ..training.random_state import random_state, restore_random_state


class RandomReplay:
    """Restores the random generators, and lets skipped epochs draw the same random numbers as originally.

    A PyDataset, for example, may draw the order of each epoch from Python's or NumPy's generator. To skip epochs in
    their original order, the generators return to the state in which this process began training.

    Args:
        saved: The state of this rank's generators in the checkpoint; None if the checkpoint is from a different number
            of workers.
    """

    def __init__(self, saved: Mapping[str, Any] | None) -> None:
        self._saved = saved
        self._initial = random_state()
        self._current: dict[str, Any] | None = None
        self._restore()

    def begin_skipping(self) -> None:
        """Return to the state at the beginning of training."""
        self._current = random_state()
        restore_random_state(self._initial)

    def end_skipping(self, *, mid_epoch: bool) -> None:
        """Return to the state before :meth:`begin_skipping`, if it was called.

        Args:
            mid_epoch: Whether training resumes within an epoch. The checkpoint's state then already includes what
                callbacks draw at the beginning of that epoch.
        """
        if self._current is None:
            return
        restore_random_state(self._current)
        self._current = None
        if mid_epoch:
            self._restore()

    def _restore(self) -> None:
        if self._saved is not None:
            restore_random_state(self._saved)
