"""A worker's settings for saving and resuming training. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from .interval import DEFAULT_INTERVAL, CheckpointInterval

# A message to the driver.
Message: TypeAlias = dict[str, Any]
Report: TypeAlias = Callable[[Message], None]


@dataclass(frozen=True)
class CheckpointSettings:
    """Where checkpoints are kept, and how often ``fit`` saves one.

    If ``folder`` is None and ``at_driver`` is False, nothing is saved.

    Attributes:
        folder: The runner's ``checkpoint_dir``, or None.
        at_driver: Whether the driver keeps the checkpoints.
        interval: The runner's ``checkpoint_every``.
        run_id: Identifies the run.
        expected: Names of the checkpoints that earlier attempts of the run are known to have saved in ``folder``.
    """

    folder: str | None = None
    at_driver: bool = False
    interval: CheckpointInterval = DEFAULT_INTERVAL
    run_id: str = ""
    expected: tuple[str, ...] = ()
