"""Balances the workers' shards of the DataFrames, as the agents report them. Pure: no sockets, no clock."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from ...data.balance import Transfer, merge_facts, plan_frames
from ...data.layout import FrameFacts

# (rank, or None for all ranks; message)
Command: TypeAlias = tuple[int | None, dict[str, Any]]


class ShardBalance:
    """Merges the facts about all shards, and tells each rank which rows to hand over and which it will receive.

    Memory is linear in the number of ranks and in the number of columns.

    Args:
        world_size: Number of ranks.
    """

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._rows: dict[int, list[int]] = {}  # by rank, one number for each frame
        self._merged: list[FrameFacts] = []
        self._transfers: dict[int, list[tuple[int, Transfer]]] = defaultdict(list)  # by rank, with the frame's number
        self._forwarded: dict[int, dict[tuple[int, int], dict[str, Any]]] = defaultdict(dict)  # by target

    @property
    def _is_complete(self) -> bool:
        return len(self._rows) == self._world_size

    def count(self, rank: int, facts: Sequence[Mapping[str, Any]]) -> list[Command]:
        """Handle the facts about a rank's rows, one entry for each frame."""
        if rank in self._rows:
            return []
        own = list(map(FrameFacts.from_json, facts))
        self._rows[rank] = [each.rows for each in own]
        self._merged = [merge_facts(pair) for pair in zip(self._merged, own, strict=True)] if self._merged else own
        if not self._is_complete:
            return []
        for frame, transfer in plan_frames([self._rows[each] for each in range(self._world_size)]):
            for end in (transfer.source, transfer.target):
                self._transfers[end].append((frame, transfer))
        return [*((each, self._transfers_of(each)) for each in range(self._world_size)), (None, self._facts())]

    def forward(self, message: Mapping[str, Any]) -> list[Command]:
        """Handle rows that one rank hands over to another."""
        target = int(message["to"])
        forwarded = {**message, "type": "passed"}
        self._forwarded[target][message["from"], message["frame"]] = forwarded
        return [(target, forwarded)]

    def catch_up(self, rank: int, hello: Mapping[str, Any]) -> list[Command]:
        """Repeat messages that may have been lost with an earlier connection; receiving one twice does no harm."""
        commands = self.count(rank, hello["facts"]) if "facts" in hello else []
        for message in hello.get("passed", ()):
            commands += self.forward(message)
        if self._is_complete:
            commands += [(rank, self._transfers_of(rank)), (rank, self._facts())]
            commands += [(rank, rows) for rows in self._forwarded[rank].values()]
        return commands

    def _facts(self) -> dict[str, Any]:
        return {"type": "facts", "facts": [each.to_json() for each in self._merged]}

    def _transfers_of(self, rank: int) -> dict[str, Any]:
        return {"type": "transfers", "transfers": [[frame, *transfer] for frame, transfer in self._transfers[rank]]}
