"""Checkpoints that a training function writes itself: ``get_context().save_checkpoint`` and ``latest_checkpoint``."""

from collections.abc import Callable
from typing import Any

from . import store
from .names import checkpoint_name, lane_of
from .snapshot import check
from .writer import Writer

_LANE = "own"


class ManualCheckpoints:
    """Of one worker.

    Args:
        store: where they are kept.
        writer: writes them.
        is_chief: whether this is rank 0, which alone writes.
        warn: takes a text for the driver.
    """

    def __init__(
        self, store: store.CheckpointStore, writer: Writer, is_chief: bool, warn: Callable[[str], None]
    ) -> None:
        self._store, self._writer, self._is_chief, self._warn = store, writer, is_chief, warn
        self._sequence: int | None = None

    def save(self, state: Any) -> None:
        """Have it written; its arrays are copied before this returns."""
        copied = check(state)
        if not self._is_chief:
            return
        if self._sequence is None:
            used = [int(name.rpartition("-")[2]) for name in self._store.names() if lane_of(name) == _LANE]
            self._sequence = max(used, default=-1)
        self._sequence += 1
        self._writer.put(checkpoint_name(_LANE, self._sequence), {"sequence": self._sequence}, copied)

    def latest(self) -> Any:
        """The newest that is whole; None where there is none."""
        found = store.latest(self._store, _LANE, self._warn)
        return None if found is None else found[2]
