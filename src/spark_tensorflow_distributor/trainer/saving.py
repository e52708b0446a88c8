"""What becomes of a worker's checkpoints: where they are kept, and who watches over ``fit``."""

import contextlib
import socket
from collections.abc import Mapping
from typing import Any, BinaryIO, Protocol

from ..context import WorkerContext, set_checkpoints
from ..errors import CheckpointError


class Agent(Protocol):
    """The connection to the agent."""

    def send(self, message: dict[str, Any]) -> None: ...
    def send_file(self, message: dict[str, Any], file: BinaryIO) -> None: ...


class Saving:
    """Of one worker.

    Args:
        request: what the trainer was asked for; ``checkpoints`` says where they are kept (``folder``, ``at_driver``),
            how often (``every``), which the driver keeps (``names``) and which a folder has to hold (``expected``).
        files: descriptors of those that the driver keeps, by name.
        agent: who is told.
    """

    def __init__(self, request: Mapping[str, Any], files: Mapping[str, int], agent: Agent) -> None:
        self._wanted, self._context = request["checkpoints"], WorkerContext(**request["context"])
        self._files, self._agent = files, agent
        self._keeper: Any = None

    @property
    def place(self) -> dict[str, int] | None:
        """Which fit, epoch and step the training is in, or was when it failed."""
        found: dict[str, int] | None = None if self._keeper is None else self._keeper.place()
        return found

    def begin(self) -> None:
        """Watch over ``fit``, and save it if that is wanted.

        Raises:
            CheckpointError: ``checkpoint_dir`` cannot be used.
        """
        from . import fits, own, pace

        wanted = self._wanted
        store = self._store()
        self._keeper = keeper = fits.Keeper(
            self._context, self._agent.send, store, pace.parse(wanted["every"]), wanted["run"]
        )
        keeper.install()
        if keeper.store is not None and keeper.writer is not None:
            set_checkpoints(own.OwnCheckpoints(keeper.store, keeper.writer, self._context.is_chief, keeper.warn))

    def _store(self) -> Any:
        from . import vault

        wanted = self._wanted
        if wanted["folder"] is not None:
            folder = vault.Folder(wanted["folder"], wanted["run"])
            self._check(folder)
            return folder
        if wanted["at_driver"]:
            return vault.AtDriver(
                {name: self._files[name] for name in wanted["names"]},
                lambda name, file: self._agent.send_file({"type": "commit", "name": name}, file),
            )
        return None

    def _check(self, folder: Any) -> None:
        """What the driver knows to have been saved has to be here."""
        there = folder.names()
        missing = [name for name in self._wanted["expected"] if name not in there]
        if missing and self._context.is_chief:
            raise CheckpointError(
                f"The checkpoint {folder.where(missing[-1])}, which an earlier attempt of this run has saved, is not "
                f"on {socket.gethostname()}. checkpoint_dir must be a place that all hosts share, as a mounted file "
                "system or a URL; with checkpoint_dir=None the driver keeps them, and nothing need be shared."
            )

    def flush(self) -> None:
        """Wait until all is written."""
        if self._keeper is not None:
            self._keeper.finish()

    def finish(self) -> None:
        """The run has ended well."""
        if self._keeper is not None and self._keeper.store is not None and self._context.is_chief:
            with contextlib.suppress(Exception):  # the next run with this folder would begin with this one's end
                self._keeper.store.finish()
