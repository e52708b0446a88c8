"""A process group: the collectives that the trainers of a run call."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import CollectiveError
from ..formatting import one_line
from .arrays import AnyArray, Layout, working_type
from .connect import connect
from .connection import Connection, DifferentOperationError, FarewellError, PeerLostError
from .frames import SUMMED, Operation
from .local import LocalGroup
from .out_of_step import SAME_CALLS, OutOfStepError
from .remote import RemoteGroup
from .spec import GroupSpec
from .transfers import Array

# Time limit for sending farewells to all members.
_FAREWELLS_SECONDS = 5.0
# How long ``leave`` waits for an operation in another thread.
_LEAVE_SECONDS = 5.0


class ProcessGroup:
    """All members of a group, as seen by one of them.

    Every member must call the same operations in the same order. If an operation fails on one member, it fails on all
    of them, and so do all later operations.

    Args:
        spec: The group.
        local: The group of the members on this machine.
        remote: The group of the leaders of all machines; None if this member is not a leader.
        line: Returns the line of the user's program that is being executed, for error messages.
    """

    def __init__(
        self, spec: GroupSpec, local: LocalGroup, remote: RemoteGroup | None, line: Callable[[], str] = str
    ) -> None:
        self.rank, self.world_size, self.generation = spec.rank, len(spec.members), spec.generation
        self._topology = spec.topology
        self._local, self._remote, self._line = local, remote, line
        self._lock = threading.Lock()
        self._number = 0
        #: Why the group ended; None while it is usable.
        self.error: CollectiveError | None = None
        #: Whether an exception on this member ended the group in the middle of an operation.
        self.was_interrupted = False
        #: Called after each operation with its duration in seconds and the size of this member's data in bytes.
        self.observer: Callable[[float, int], None] | None = None

    @classmethod
    def form(
        cls,
        spec: GroupSpec,
        remote_listener: socket.socket | None,
        local_listener: socket.socket | None,
        seconds: float,
        line: Callable[[], str] = str,
    ) -> ProcessGroup:
        """Connect to the other members; see :func:`connect`."""
        group = cls(spec, *connect(spec, remote_listener, local_listener, seconds), line)
        os.register_at_fork(after_in_child=functools.partial(_leave_to_parent, weakref.ref(group)))
        return group

    def all_reduce(
        self,
        arrays: Sequence[AnyArray],
        scale: float | None = None,
        purpose: str = "",
        wire: np.dtype[Any] | None = None,
    ) -> list[AnyArray]:
        """Return the sums of several arrays over all members, bit for bit the same on all of them.

        Args:
            arrays: Arrays of one type: float16, bfloat16 (both summed in float32), float32, float64, int32 or int64;
                the same shapes on all members.
            scale: Factor for this member's arrays; None for 1.
            purpose: What the sum is for; the same on all members.
            wire: The type in which float32 arrays travel between machines, float16 or bfloat16 (from ``ml_dtypes``); by
                default, float32. Each machine on the way adds in float32 and then rounds. Small arrays are sent
                unchanged.

        Raises:
            CollectiveError: If a member is gone, or in another operation.
            TypeError: If the arrays have different types or a type that is not listed, or if ``scale`` is given for
                integers.
        """
        dtype = working_type(arrays[0].dtype)
        if dtype.name not in SUMMED or any(array.dtype != arrays[0].dtype for array in arrays):
            raise TypeError(f"Arrays of {sorted({array.dtype.name for array in arrays})} cannot be summed together.")
        if scale is not None and dtype.kind != "f":
            raise TypeError(f"Arrays of {dtype.name} cannot be multiplied by a factor.")
        wire = wire if dtype == np.float32 else None
        arrays = [np.asarray(array, order="C") for array in arrays]
        details = f"{purpose} {arrays[0].dtype} {wire} {[array.shape for array in arrays]}"
        nbytes = sum(array.size for array in arrays) * dtype.itemsize
        with self._operation("all_reduce", dtype.name, nbytes, details) as operation:
            if self._remote is not None and len(self._topology.leaders) == self.world_size:
                return self._reduce_remotely(operation, self._remote, arrays, scale, wire)
            layout = Layout([array.shape for array in arrays], arrays[0].dtype)
            buffer, results = layout.allocate()
            between = None if len(self._topology.leaders) == 1 else self._sum_of_machines(operation, wire)
            self._local.all_reduce(operation, functools.partial(layout.fill, arrays, scale=scale), buffer, between)
            return results

    def all_gather(self, array: AnyArray, purpose: str = "") -> AnyArray:
        """Return the arrays of all members, ``[world_size, *shape]``.

        Args:
            array: An array of any type; the same shape on all members.
            purpose: What the arrays are for; the same on all members.

        Raises:
            CollectiveError: If a member is gone, or in another operation.
        """
        array = np.asarray(array, order="C")
        _, (result,) = Layout([(self.world_size, *array.shape)], array.dtype).allocate()
        rows = (
            result.view(np.uint8).reshape(self.world_size, array.nbytes) if array.nbytes else np.empty((0, 0), np.uint8)
        )
        with self._operation(
            "all_gather", "uint8", array.nbytes, f"{purpose} {array.dtype} {array.shape}"
        ) as operation:
            if not array.nbytes:
                self._wait(operation)
                return result
            rows[self.rank] = array.reshape(-1).view(np.uint8)
            group = self._topology.group_of(self.rank)
            if len(group) > 1:
                self._local.all_gather(operation, rows[self.rank].copy(), [rows[rank] for rank in group])
            if len(self._topology.leaders) > 1:
                if self._remote is not None:
                    self._gather_machines(operation, self._remote, rows)
                if len(group) > 1:
                    self._local.broadcast(operation, rows.reshape(-1))
        return result

    def barrier(self) -> None:
        """Wait until every member has called this.

        Raises:
            CollectiveError: If a member is gone, or in another operation.
        """
        with self._operation("barrier", "uint8", 0) as operation:
            self._wait(operation)

    def leave(self, reason: Mapping[str, Any] | None = None) -> None:
        """Tell the other members that this one will call no more operations.

        Args:
            reason: The farewell; by default, that the program has returned. The other members show its ``text``.
        """
        if not self._lock.acquire(timeout=_LEAVE_SECONDS):  # another thread is waiting in an operation
            self.error = CollectiveError("This worker has left the group.")
            for connection in self._connections():
                connection.break_off()
            return
        try:
            if self.error is None:
                self.error = CollectiveError("This worker has left the group.")
                self._say_farewell({"kind": "returned", "rank": self.rank, **(reason or {})})
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections():
            connection.close()

    def _reduce_remotely(
        self,
        operation: Operation,
        remote: RemoteGroup,
        arrays: Sequence[AnyArray],
        scale: float | None,
        wire: np.dtype[Any] | None,
    ) -> list[AnyArray]:
        """Sum arrays in a group where every member is on a different machine."""
        dtype = np.dtype(operation.dtype)
        layout = Layout([array.shape for array in arrays], dtype)
        buffer, sums = layout.allocate()
        layout.fill(arrays, 0, layout.size, buffer, scale)
        remote.all_reduce(operation, buffer, wire)
        return sums if arrays[0].dtype == dtype else [total.astype(arrays[0].dtype) for total in sums]

    def _sum_of_machines(self, operation: Operation, wire: np.dtype[Any] | None) -> Callable[[Array], None]:
        remote = self._remote

        def reduce(array: Array) -> None:
            if remote is not None:
                remote.all_reduce(operation, array, wire)

        return reduce

    def _gather_machines(self, operation: Operation, remote: RemoteGroup, rows: AnyArray) -> None:
        blocks = [np.ascontiguousarray(rows[list(ranks)]).reshape(-1) for ranks in self._topology.groups]
        remote.all_gather(operation, blocks)
        for ranks, block in zip(self._topology.groups, blocks, strict=True):
            rows[list(ranks)] = block.reshape(len(ranks), -1)

    def _wait(self, operation: Operation) -> None:
        self._local.barrier(operation)
        if len(self._topology.leaders) > 1:
            if self._remote is not None:
                self._remote.all_reduce(operation, np.zeros(1, np.uint8))
            self._local.barrier(operation)

    @contextlib.contextmanager
    def _operation(self, kind: str, dtype: str, nbytes: int, details: str = "") -> Iterator[Operation]:
        """Number an operation; if it fails, end the group."""
        with self._lock:
            if self.error is not None:
                raise self.error.with_traceback(None)
            operation = Operation(self._number & 0xFFFFFFFF, kind, dtype, nbytes, details)
            self._number += 1
            began = time.perf_counter()
            try:
                with np.errstate(all="ignore"):  # an overflow comes from the program's data, and shows in the result
                    yield operation
            except FarewellError as error:
                raise self._end(self._explain_farewell(operation, error)) from None
            except DifferentOperationError as error:
                raise self._end(self._explain_difference(operation, error)) from None
            except PeerLostError as error:
                raise self._end(error) from None
            except BaseException as error:  # KeyboardInterrupt or MemoryError, for example
                self.was_interrupted = True
                self.error = CollectiveError(f"The group ended when an operation was interrupted: {one_line(error)}")
                self._say_farewell({"kind": "failed", "rank": self.rank, "text": one_line(error)})
                raise
            if self.observer is not None:
                self.observer(time.perf_counter() - began, nbytes)

    def _end(self, error: CollectiveError) -> CollectiveError:
        self.error = error
        reason = error.reason if isinstance(error, PeerLostError) else {"kind": "out of step", "text": str(error)}
        self._say_farewell({"rank": self.rank, **reason})
        return error

    def _explain_farewell(self, operation: Operation, farewell: FarewellError) -> CollectiveError:
        reason = farewell.reason
        rank, text = reason.get("rank", farewell.connection.rank), str(reason.get("text", ""))
        if reason.get("kind") == "out of step" and "here" in reason:
            here = self._here(operation)
            farewell.connection.say_farewell({"kind": "out of step", "rank": self.rank, "here": here})
            return self._out_of_step({self.rank: here, rank: reason["here"]})
        if reason.get("kind") == "out of step":
            return OutOfStepError(text)
        if reason.get("kind") == "returned":
            return OutOfStepError(
                f"Rank {rank} has returned from the training function, but rank {self.rank} is in "
                f"{self._here(operation)}. {SAME_CALLS}"
            )
        if reason.get("kind") == "lost":
            return PeerLostError(f"The connection to rank {rank} was lost: {text}.", reason)
        return PeerLostError(f"Rank {rank} failed: {text}", reason)

    def _explain_difference(self, operation: Operation, difference: DifferentOperationError) -> CollectiveError:
        """Tell the peer where this member is, and find out where the peer is."""
        peer, here = difference.connection, self._here(operation)
        peer.say_farewell({"kind": "out of step", "rank": self.rank, "here": here})
        reason = peer.wait_for_farewell(difference.unread)
        if reason and "here" not in reason:  # the peer left for another reason
            return self._explain_farewell(operation, FarewellError(peer, reason))
        return self._out_of_step({self.rank: here, peer.rank: reason.get("here") or str(difference.theirs)})

    def _out_of_step(self, places: Mapping[int, str]) -> OutOfStepError:
        where = "; ".join(f"rank {rank} is in {text}" for rank, text in sorted(places.items()))
        return OutOfStepError(f"The workers are in different operations: {where}. {SAME_CALLS}")

    def _here(self, operation: Operation) -> str:
        line = self._line()
        return f"{line} [{operation}]" if line else str(operation)

    def _say_farewell(self, reason: Mapping[str, Any]) -> None:
        deadline = time.monotonic() + _FAREWELLS_SECONDS
        for connection in self._connections():
            connection.say_farewell(reason, deadline)

    def _connections(self) -> list[Connection]:
        remote = {} if self._remote is None else self._remote.connections
        return [*self._local.connections.values(), *remote.values()]


def _leave_to_parent(reference: weakref.ref[ProcessGroup]) -> None:
    """Close a forked child's copies of the connections, which would keep them open after the parent's end."""
    group = reference()
    if group is not None:
        group.error = CollectiveError("Operations between the workers are not possible in a forked process.")
        group.close()
