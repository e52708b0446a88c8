"""Plans how to equalise the workers' shards, and merges their facts. Pure.

Spark's shuffle distributes the rows of each partition evenly, so the shards differ by only a few rows. Workers hand
these over to each other until no two shards differ by more than one row, so that no worker runs out of rows early.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from .layout import ColumnFacts, FrameFacts


class Transfer(NamedTuple):
    """A number of rows that one rank hands over to another."""

    source: int
    target: int
    rows: int


def plan_transfers(rows: Sequence[int]) -> list[Transfer]:
    """Return transfers that make all shards equal to within one row, moving as few rows as possible.

    Args:
        rows: The number of rows of each rank.
    """
    least, extra = divmod(sum(rows), len(rows))
    # The extra rows stay with the largest shards.
    by_size = sorted(range(len(rows)), key=lambda rank: (-rows[rank], rank))
    wanted = {rank: least + (position < extra) for position, rank in enumerate(by_size)}
    surplus = deque([rank, rows[rank] - wanted[rank]] for rank in range(len(rows)) if rows[rank] > wanted[rank])
    deficit = deque([rank, wanted[rank] - rows[rank]] for rank in range(len(rows)) if rows[rank] < wanted[rank])
    transfers = []
    while surplus:
        source, target = surplus[0], deficit[0]
        count = min(source[1], target[1])
        transfers.append(Transfer(source[0], target[0], count))
        for side, queue in ((source, surplus), (target, deficit)):
            side[1] -= count
            if not side[1]:
                queue.popleft()
    return transfers


def plan_frames(rows: Sequence[Sequence[int]]) -> list[tuple[int, Transfer]]:
    """Return the transfers for all DataFrames, each with the number of its frame.

    Args:
        rows: For each rank, the number of its rows in each frame.
    """
    return [
        (frame, transfer) for frame, counts in enumerate(zip(*rows, strict=True)) for transfer in plan_transfers(counts)
    ]


def merge_facts(facts: Sequence[FrameFacts]) -> FrameFacts:
    """Combine the facts about each worker's rows into facts about the whole DataFrame."""
    columns = zip(*(each.columns for each in facts), strict=True)
    return FrameFacts(sum(each.rows for each in facts), tuple(map(_merge_column, columns)))


def _merge_column(facts: Sequence[ColumnFacts]) -> ColumnFacts:
    return ColumnFacts(
        nulls=sum(each.nulls for each in facts),
        inner_nulls=sum(each.inner_nulls for each in facts),
        nans=sum(each.nans for each in facts),
        lengths=tuple(map(_merge_ranges, zip(*(each.lengths for each in facts), strict=True))),
    )


def _merge_ranges(ranges: Sequence[tuple[int, int]]) -> tuple[int, int]:
    ranges = [each for each in ranges if each[1] >= 0]
    return (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else (-1, -1)
