"""Checkpoints that a training function saves itself, with ``save_checkpoint`` and ``latest_checkpoint``."""

from collections.abc import Callable
from typing import Any

from . import snapshot
from .names import MANUAL_LANE, checkpoint_name, last_sequence
from .store import CheckpointStore, newest_checkpoint
from .writer import CheckpointWriter


class ManualCheckpoints:
    """Saves and loads the checkpoints of the training function itself.

    Args:
        store: Keeps the checkpoints.
        writer: Writes checkpoints to the store.
        is_chief: Whether this is rank 0, the only one that writes.
        warn: Called with a message for the driver.
    """

    def __init__(
        self, store: CheckpointStore, writer: CheckpointWriter, is_chief: bool, warn: Callable[[str], None]
    ) -> None:
        self._store, self._writer, self._is_chief, self._warn = store, writer, is_chief, warn
        self._sequence: int | None = None

    def save(self, state: object) -> None:
        """Copy the state and queue it for writing.

        Raises:
            CheckpointError: If the state contains a value that a checkpoint cannot hold.
        """
        copied = snapshot.copy_state(state)
        if not self._is_chief:
            return
        if self._sequence is None:
            self._sequence = last_sequence(self._store.names(), MANUAL_LANE)
        self._sequence += 1
        self._writer.put(checkpoint_name(MANUAL_LANE, self._sequence), {"sequence": self._sequence}, copied)

    def latest(self) -> Any:
        """Return the state of the newest undamaged checkpoint, or None if there is none."""
        checkpoint = newest_checkpoint(self._store, MANUAL_LANE, snapshot.read, self._warn)
        return None if checkpoint is None else checkpoint.content[1]
