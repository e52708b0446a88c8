"""The rows that Spark hands to a worker: from Arrow batches to files, and from there to equal shares.

A thread of its own reads Spark's batches, so that the agent can watch over the trainer meanwhile, which imports
TensorFlow and builds its strategy. When all batches are in, the workers tell each other how many rows they have, and
pass on the few by which their shares differ.
"""

import base64
import contextlib
import errno
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, BinaryIO

import numpy as np

from ..errors import BrokenInputError, DataError
from .balance import merge_facts, plan_transfers
from .columns import take_apart
from .layout import FrameSpec
from .spool import FrameSpool

Message = dict[str, Any]
_TELL_SECONDS = 2.0
_REMEDY = "Free space there, or point spark.local.dir (SPARK_LOCAL_DIRS on the executors) to a larger disk."


class RowReceiver:
    """One worker's side of it.

    Args:
        frames: what comes.
        batches: Arrow batches, from Spark: row id, frame number, then the wide schema's places.
        rank: of this worker, of ``world_size``.
        directory: for the files.
        sharing: how many workers write to this disk.
    """

    def __init__(
        self,
        frames: Sequence[FrameSpec],
        batches: Iterator[Any],
        *,
        rank: int,
        world_size: int,
        directory: str,
        sharing: int,
    ) -> None:
        self._frames = frames
        self._rank, self._world_size = rank, world_size
        self._directory, self._sharing = directory, sharing
        self._facts: dict[int, list[dict[str, Any]]] = {}
        self._missing: set[tuple[int, int]] | None = None
        self._arrived: dict[tuple[int, int], str] = {}
        self._told = 0.0
        self._ends = False
        self.error: Exception | None = None
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._spools: list[FrameSpool] = []
        self._thread = threading.Thread(
            target=self._drain, args=(batches,), daemon=True, name="spark-tensorflow-intake"
        )
        self._thread.start()

    def fileno(self) -> int:
        """Readable once all batches are in, or one of them failed."""
        return self._woken.fileno()

    @property
    def rows(self) -> dict[str, int]:
        """Rows so far, by frame."""
        return {frame.name: spool.share for frame, spool in zip(self._frames, self._spools, strict=False)}

    @property
    def bytes(self) -> int:
        return sum(spool.bytes for spool in self._spools)

    def acknowledge(self) -> list[Message]:
        """To be called when readable; returns what to tell the driver.

        Raises:
            DataError: the rows could not be taken in.
        """
        self._woken.recv(1)
        self._thread.join()
        if self.error is not None:
            raise self.error
        self._facts[self._rank] = [spool.facts() for spool in self._spools]
        if self._world_size == 1:
            return self.share({self._rank: self._facts[self._rank]})
        return [{"type": "rows", "facts": self._facts[self._rank]}]

    def progress(self) -> Message | None:
        """A sign of life for the driver, now and then while rows come in."""
        if not self._thread.is_alive() or time.monotonic() - self._told < _TELL_SECONDS:
            return None
        self._told = time.monotonic()
        return {"type": "intake", "rows": sum(self.rows.values()), "bytes": self.bytes}

    def on_message(self, message: Mapping[str, Any]) -> list[Message]:
        """A message of the driver's; returns what to tell it."""
        if message["type"] == "shares":
            return self.share({int(rank): facts for rank, facts in message["facts"].items()})
        if message["type"] == "passed":
            self._take(message)
        return []

    def share(self, facts: Mapping[int, list[dict[str, Any]]]) -> list[Message]:
        """All workers' facts are known: give what is too much here, and wait for what is missing.

        Returns:
            ``pass`` messages for other ranks.
        """
        if self._missing is not None:  # told again, on a new connection
            return []
        self._facts = dict(facts)
        given: list[Message] = []
        self._missing = set()
        for number, spool in enumerate(self._spools):
            rows = [self._facts[rank][number]["rows"] for rank in range(self._world_size)]
            for giver, taker, count in plan_transfers(rows):
                if giver == self._rank:
                    data = base64.b64encode(spool.give(count)).decode()
                    given.append({"type": "pass", "to": taker, "from": giver, "frame": number, "data": data})
                elif taker == self._rank:
                    self._missing.add((number, giver))
        return given

    def _take(self, message: Mapping[str, Any]) -> None:
        # Kept by giver, and not appended yet: a message may come twice, or before the word of the shares.
        self._arrived[message["frame"], message["from"]] = message["data"]

    @property
    def is_complete(self) -> bool:
        """Whether this worker has its share."""
        return self._missing is not None and self._missing <= self._arrived.keys()

    def share_by_all_gather(self, all_gather: Callable[[str], list[str]]) -> None:
        """The same without the driver, by Spark's ``allGather``."""
        facts = [json.loads(text) for text in all_gather(json.dumps([self._rank, self._facts[self._rank]]))]
        given = self.share(dict(facts))
        moves = any(
            plan_transfers([self._facts[rank][number]["rows"] for rank in range(self._world_size)])
            for number in range(len(self._frames))
        )
        if moves:
            for text in all_gather(json.dumps(given)):
                for message in json.loads(text):
                    if message["to"] == self._rank:
                        self._take(message)

    def layout(self) -> tuple[dict[str, Any], list[BinaryIO]]:
        """What the trainer has to know, and the files."""
        for (number, _), data in sorted(self._arrived.items()):
            with self._explained():
                self._spools[number].take(base64.b64decode(data))
        frames: list[dict[str, Any]] = []
        files: list[BinaryIO] = []
        for number, (frame, spool) in enumerate(zip(self._frames, self._spools, strict=True)):
            layout, own = spool.layout()
            layout["all"] = merge_facts([self._facts[rank][number] for rank in range(self._world_size)])
            columns = [asdict(column) for column in frame.columns]
            frames.append(
                {"name": frame.name, "schema": frame.schema, "spec": columns, "first_file": len(files), **layout}
            )
            files += own
        return {"frames": frames}, files

    def _drain(self, batches: Iterator[Any]) -> None:
        try:
            self._check_space()
            self._spools = [FrameSpool(frame.columns, self._directory) for frame in self._frames]
            rows = self._guarded(batches)
            for batch in rows:
                if self._ends:
                    return
                with self._explained():
                    self._add(batch)
        except Exception as error:
            self.error = error
        finally:
            with contextlib.suppress(OSError):  # the agent has gone on without us
                self._wake.send(b".")

    def _guarded(self, batches: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from batches
        except Exception as error:
            raise BrokenInputError(
                f"Spark broke off the rows of this worker: {type(error).__name__}: {error}"
            ) from error

    def _add(self, batch: Any) -> None:
        ids, numbers = batch.column(0).to_numpy(), batch.column(1).to_numpy()
        # The rows of one frame come in one piece, or a few.
        breaks = np.flatnonzero(numbers[1:] != numbers[:-1]) + 1
        starts = [0, *breaks.tolist()] if len(numbers) else []
        for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
            frame, spool = self._frames[numbers[start]], self._spools[numbers[start]]
            piece = batch.slice(start, end - start)
            values = [
                take_apart(piece.column(2 + place), column)
                for place, column in zip(frame.places, frame.columns, strict=True)
            ]
            spool.add(values, ids[start:end])

    def _check_space(self) -> None:
        """Refuse before it starts what cannot fit, where Spark knows the number of rows."""
        needed = self._needed()
        free = shutil.disk_usage(self._directory).free
        if needed > free:
            raise DataError(
                f"The rows need at least {_size(needed)} on the disk of {self._directory} ({self._workers()}), and "
                f"{_size(free)} are free. {_REMEDY}"
            )

    def _needed(self) -> int:
        """Bytes that the workers of this disk will write at least; 0 where Spark does not know the rows."""
        total = 0
        for frame in self._frames:
            plain = (np.dtype(c.storage).itemsize for c in frame.columns if not c.depth and not c.is_bytes)
            total += (frame.expected_rows or 0) * sum(plain)
        return total * self._sharing // self._world_size

    def _workers(self) -> str:
        return f"{self._sharing} of {self._world_size} workers share it"

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            rows, needed = sum(self.rows.values()), self._needed()
            known = f", of at least {_size(needed)} that all need" if needed else ""
            raise DataError(
                f"The disk of {self._directory} is full ({error.strerror}): this worker had written "
                f"{_size(self.bytes)} ({rows} rows){known}, {self._workers()}. {_REMEDY}"
            ) from error

    def close(self) -> None:
        """Let go of files and thread. What Spark still sends is left unread."""
        self._ends = True
        self._thread.join(1.0)
        for spool in self._spools:
            spool.close()
        self._wake.close()
        self._woken.close()


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 1 << 30 else f"{count / 2**20:.1f} MiB"
