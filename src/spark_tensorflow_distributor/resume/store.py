"""Where checkpoints are kept: in a folder that all hosts reach, or at the driver.

A checkpoint is one file, so that it is either there or not: a folder gets it under another name first, and an object
store shows a file when it is complete. Names sort by age within a lane: ``fit0-00000012``. Of each lane the last two
stay, the older one for the case that the newer turns out to be damaged.
"""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any, BinaryIO, Protocol

from ..errors import CheckpointError
from . import snapshot
from .filesystems import HALF_WRITTEN, Write, files_of
from .names import lane_of, outdated

_NAME = re.compile(r"([a-z]+\d*)-(\d{8})$")
_PREFIX, _SUFFIX = "stfd-", ".npz"
_FINISHED = "stfd-finished.json"


class CheckpointStore(Protocol):
    """Keeps checkpoints."""

    def names(self) -> list[str]:
        """All there are, in no order."""

    def open(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """To be read."""

    def put(self, name: str, write: Write) -> None:
        """Keep one more, and let go of what is outdated.

        Raises:
            OSError: it could not be written.
        """

    def where(self, name: str) -> str:
        """In words."""

    def finish(self) -> None:
        """The run has ended well: its checkpoints are for nobody but itself."""


def latest(vault: CheckpointStore, lane: str, warn: Callable[[str], None]) -> tuple[str, dict[str, Any], Any] | None:
    """Name, facts and state of the newest checkpoint of a lane that is whole."""
    found = newest(vault, lane, warn)
    return None if found is None else (found[0], *found[2:])


def newest(
    vault: CheckpointStore, lane: str, warn: Callable[[str], None]
) -> tuple[str, bytes, dict[str, Any], Any] | None:
    """The same, with the file's content behind the name."""
    for name in sorted((each for each in vault.names() if lane_of(each) == lane), reverse=True):
        try:
            with vault.open(name) as file:
                data = file.read()
            return (name, data, *snapshot.read(BytesIO(data)))
        except (CheckpointError, OSError) as error:
            warn(
                f"The checkpoint {vault.where(name)} is left out: {error}. The one before it is taken, if there is one."
            )
    return None


class Folder:
    """A directory: a path, or a URL of a file system that TensorFlow or fsspec knows.

    Args:
        path: of the directory; made where it is missing.
        run: identifies the run, so that one that has ended well is not taken up by the next.
    """

    def __init__(self, path: str, run: str) -> None:
        self._run = run
        self._files = files_of(path)
        self._files.make()
        self._adopted = False

    def where(self, name: str) -> str:
        return self._files.join(_file(name))

    def names(self) -> list[str]:
        if self._belongs_to_a_finished_run():
            return []
        return [
            name
            for each in self._files.list()
            if each.startswith(_PREFIX) and each.endswith(_SUFFIX)
            and _NAME.match(name := each[len(_PREFIX) : -len(_SUFFIX)])
        ]  # fmt: skip

    def open(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        return self._files.read(_file(name))

    def put(self, name: str, write: Write) -> None:
        self._adopt()
        self._files.write(_file(name), write)
        for old in outdated(self.names()):
            self._files.remove(_file(old))

    def finish(self) -> None:
        if any(each.startswith(_PREFIX) for each in self._files.list()):
            text = json.dumps({"run": self._run}).encode()
            self._files.write(_FINISHED, lambda file: file.write(text))

    def _belongs_to_a_finished_run(self) -> bool:
        if self._adopted or _FINISHED not in self._files.list():
            return False
        with self._files.read(_FINISHED) as file, contextlib.suppress(ValueError):
            return bool(json.loads(file.read()).get("run") != self._run)
        return True

    def _adopt(self) -> None:
        """Make it this run's: what another one has left is removed before the first file of this one."""
        if self._adopted:
            return
        if self._belongs_to_a_finished_run():
            for each in self._files.list():
                if each.startswith(_PREFIX):
                    self._files.remove(each)
        for each in self._files.list():
            if each.startswith(HALF_WRITTEN):
                self._files.remove(each)
        self._adopted = True


def _file(name: str) -> str:
    return f"{_PREFIX}{name}{_SUFFIX}"


class AtDriver:
    """The driver keeps them: read from files that the agent has fetched, and written to files that it fetches.

    Args:
        files: descriptors of what the driver keeps, by name.
        send: gives a file to the agent.
    """

    def __init__(self, files: dict[str, int], send: Callable[[str, BinaryIO], None]) -> None:
        self._files = files
        self._send = send

    def where(self, name: str) -> str:
        return f"{name}, kept at the driver"

    def names(self) -> list[str]:
        return list(self._files)

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        with os.fdopen(os.dup(self._files[name]), "rb") as file:
            file.seek(0)
            yield file

    def put(self, name: str, write: Write) -> None:
        with tempfile.TemporaryFile() as file:
            write(file)
            file.flush()
            self._send(name, file)

    def finish(self) -> None:
        """The driver does so by itself."""
