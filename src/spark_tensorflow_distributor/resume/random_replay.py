"""The random generators of a resumed ``fit``."""

from collections.abc import Mapping
from typing import Any

from ..training.random_state import random_state, restore_random_state


class RandomReplay:
    """Restores the random generators, and lets skipped epochs consume what they consumed originally.

    A PyDataset, for one, draws its order from Python's or NumPy's generator in each epoch. To skip epochs in their
    original order, the generators go back to the state in which this process began the training.

    Args:
        saved: This rank's generators as the checkpoint has them; None if it was saved by another number of workers.
    """

    def __init__(self, saved: Mapping[str, Any] | None) -> None:
        self._saved = saved
        self._initial = random_state()
        self._current: dict[str, Any] | None = None
        self._restore()

    def begin_skipping(self) -> None:
        """Go back to the beginning of the training."""
        self._current = random_state()
        restore_random_state(self._initial)

    def end_skipping(self, *, mid_epoch: bool) -> None:
        """Return to the present, if epochs have been skipped since the last call.

        Args:
            mid_epoch: Whether training resumes within an epoch. Then the checkpoint's state already includes what
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
