"""Receives a worker's rows from Spark: writes Arrow batches to files, and equalises the shards.

A thread reads Spark's batches, so that the agent can watch the trainer in the meantime. Once all batches have arrived,
the workers exchange the sizes of their shards, and hand over the few rows by which these differ.
"""

import base64
import contextlib
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..errors import BrokenInputError, DataError
from ..formatting import amount, one_line
from .balance import Transfer, merge_facts, plan_frames
from .columns import split_array
from .disk import is_full
from .layout import FrameFacts, FrameSpec, ShardLayout
from .spool import FrameSpool

if TYPE_CHECKING:
    import pyarrow as pa

Message = dict[str, Any]
_REPORT_SECONDS = 2.0
_REMEDY = "Free space there, or point spark.local.dir (SPARK_LOCAL_DIRS on the executors) to a larger disk."


class RowReceiver:
    """Receives the rows of one worker.

    Args:
        frames: The DataFrames to expect.
        batches: Spark's Arrow batches: row id, frame number, and a struct of the columns of the wide schema.
        rank: This worker's rank.
        world_size: The number of workers.
        directory: Where to write the files.
        local_world_size: The number of workers that write to the same disk.

    Attributes:
        error: The error with which receiving failed; None if it has not failed.
    """

    def __init__(
        self,
        frames: Sequence[FrameSpec],
        batches: Iterator["pa.RecordBatch"],
        *,
        rank: int,
        world_size: int,
        directory: str,
        local_world_size: int,
    ) -> None:
        self._frames = frames
        self._rank, self._world_size, self._local_world_size = rank, world_size, local_world_size
        self._directory = directory
        self._merged: list[FrameFacts] | None = None  # the facts about all workers' rows, by frame
        self._transfers: list[tuple[int, Transfer]] | None = None  # this worker's transfers, with their frames
        self._expected: set[tuple[int, int]] | None = None  # frame and source of rows to come; None if not known yet
        self._received: dict[tuple[int, int], str] = {}
        self._reported_at = 0.0
        self._is_closing = False
        self.error: Exception | None = None
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._spools: list[FrameSpool] = []
        self._thread = threading.Thread(
            target=self._drain, args=(batches,), daemon=True, name="spark-tensorflow-intake"
        )
        self._thread.start()

    def fileno(self) -> int:
        """Return a descriptor that becomes readable once all batches have arrived or receiving has failed."""
        return self._woken.fileno()

    @property
    def rows(self) -> dict[str, int]:
        """The number of rows received so far, by frame."""
        return {frame.name: spool.rows for frame, spool in zip(self._frames, self._spools, strict=False)}

    @property
    def bytes(self) -> int:
        """The number of bytes written so far."""
        return sum(spool.bytes for spool in self._spools)

    def acknowledge(self) -> list[Message]:
        """Finish receiving batches; call this once the descriptor is readable.

        Returns:
            Messages for the driver.

        Raises:
            DataError: If the rows could not be received or stored.
        """
        self._woken.recv(1)
        self._thread.join()
        if self.error is not None:
            raise self.error
        facts = [spool.facts() for spool in self._spools]
        if self._world_size == 1:
            self._merged, self._transfers = facts, []
            return self._balance()
        return [{"type": "rows", "facts": [each.to_json() for each in facts]}]

    def progress(self) -> Message | None:
        """Return a progress message for the driver, if one is due while rows arrive."""
        if not self._thread.is_alive() or time.monotonic() - self._reported_at < _REPORT_SECONDS:
            return None
        self._reported_at = time.monotonic()
        return {"type": "intake", "rows": sum(self.rows.values()), "bytes": self.bytes}

    def on_message(self, message: Mapping[str, Any]) -> list[Message]:
        """Handle a message from the driver; return messages for it."""
        if message["type"] == "passed":
            self._receive(message)
        if self._expected is not None:  # the other messages are repeated after a reconnect
            return []
        if message["type"] == "facts":
            self._merged = list(map(FrameFacts.from_json, message["facts"]))
        elif message["type"] == "transfers":
            self._transfers = [(frame, Transfer(*transfer)) for frame, *transfer in message["transfers"]]
        return self._balance() if self._merged is not None and self._transfers is not None else []

    def balance_by_all_gather(self, all_gather: Callable[[str], list[str]]) -> None:
        """Equalise the shards through Spark's ``allGather`` instead of the driver."""
        own = [spool.facts().to_json() for spool in self._spools]
        gathered = dict(json.loads(text) for text in all_gather(json.dumps([self._rank, own])))
        by_rank = [list(map(FrameFacts.from_json, gathered[rank])) for rank in range(self._world_size)]
        self._merged = [merge_facts(each) for each in zip(*by_rank, strict=True)]
        plan = plan_frames([[facts.rows for facts in each] for each in by_rank])
        self._transfers = [each for each in plan if self._rank in (each[1].source, each[1].target)]
        outgoing = self._balance()
        if plan:
            for text in all_gather(json.dumps(outgoing)):
                for message in json.loads(text):
                    if message["to"] == self._rank:
                        self._receive(message)

    @property
    def is_complete(self) -> bool:
        """Whether this worker has its whole shard."""
        return self._expected is not None and self._expected <= self._received.keys()

    def layout(self) -> tuple[list[ShardLayout], list[BinaryIO]]:
        """Return the layout of each DataFrame's files, and the files of all DataFrames in order."""
        for (number, _), data in sorted(self._received.items()):
            with self._explaining_full_disk():
                self._spools[number].receive(base64.b64decode(data))
        layouts: list[ShardLayout] = []
        files: list[BinaryIO] = []
        assert self._merged is not None
        for frame, spool, facts in zip(self._frames, self._spools, self._merged, strict=True):
            layout, of_frame = spool.layout()
            layouts.append(ShardLayout(frame.name, frame.schema, frame.columns, facts, layout, len(of_frame)))
            files += of_frame
        return layouts, files

    def close(self) -> None:
        """Release the files and the thread. Batches that Spark still sends are not read."""
        self._is_closing = True
        self._thread.join(1.0)
        for spool in self._spools:
            spool.close()
        self._wake.close()
        self._woken.close()

    # Equalising the shards.

    def _balance(self) -> list[Message]:
        """Hand over this worker's surplus rows, and note which rows to expect."""
        assert self._transfers is not None
        outgoing: list[Message] = []
        self._expected = set()
        for number, (source, target, rows) in self._transfers:
            if source == self._rank:
                data = base64.b64encode(self._spools[number].hand_over(rows)).decode()
                outgoing.append({"type": "pass", "to": target, "from": source, "frame": number, "data": data})
            elif target == self._rank:
                self._expected.add((number, source))
        return outgoing

    def _receive(self, message: Mapping[str, Any]) -> None:
        # Kept by frame and source, and appended later: a message may arrive twice, or before the facts.
        self._received[message["frame"], message["from"]] = message["data"]

    # The thread.

    def _drain(self, batches: Iterator["pa.RecordBatch"]) -> None:
        try:
            self._check_space()
            self._spools = [FrameSpool(frame.columns, self._directory) for frame in self._frames]
            for batch in self._guarded(batches):
                if self._is_closing:
                    return
                with self._explaining_full_disk():
                    self._add(batch)
        except Exception as error:
            self.error = error
        finally:
            with contextlib.suppress(OSError):  # this receiver is closed already
                self._wake.send(b".")

    def _guarded(self, batches: Iterator["pa.RecordBatch"]) -> Iterator["pa.RecordBatch"]:
        try:
            yield from batches
        except Exception as error:
            raise BrokenInputError(f"Spark stopped sending this worker's rows: {one_line(error)}") from error

    def _add(self, batch: "pa.RecordBatch") -> None:
        ids, numbers = batch.column(0).to_numpy(), batch.column(1).to_numpy()
        columns = batch.column(2)  # a struct without nulls
        # The rows of a frame are mostly contiguous.
        breaks = np.flatnonzero(numbers[1:] != numbers[:-1]) + 1
        starts = [0, *breaks.tolist()] if len(numbers) else []
        for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
            frame, spool = self._frames[numbers[start]], self._spools[numbers[start]]
            piece = columns.slice(start, end - start).flatten()
            values = [
                split_array(piece[position], column)
                for position, column in zip(frame.positions, frame.columns, strict=True)
            ]
            spool.add(values, ids[start:end])

    # The disk.

    def _check_space(self) -> None:
        """Reject rows that cannot fit on the disk before receiving them, if Spark knows their number."""
        needed = self._needed()
        free = shutil.disk_usage(self._directory).free
        if needed > free:
            raise DataError(
                f"The rows need at least {amount(needed)} on the disk of {self._directory} ({self._workers()}), but "
                f"only {amount(free)} are free. {_REMEDY}"
            )

    def _needed(self) -> int:
        """Return the least number of bytes that workers will write to this disk; 0 if the number of rows is unknown."""
        total = 0
        for frame in self._frames:
            width = sum(np.dtype(column.storage).itemsize for column in frame.columns if column.is_plain)
            total += (frame.expected_rows or 0) * width
        return total * self._local_world_size // self._world_size

    def _workers(self) -> str:
        return f"{self._local_world_size} of {self._world_size} workers share it"

    @contextlib.contextmanager
    def _explaining_full_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not is_full(error):
                raise
            rows, needed = sum(self.rows.values()), self._needed()
            known = f"; the rows for this disk need at least {amount(needed)}" if needed else ""
            raise DataError(
                f"The disk of {self._directory} is full ({error.strerror}): this worker had written "
                f"{amount(self.bytes)} ({rows} rows){known}; {self._workers()}. {_REMEDY}"
            ) from error
