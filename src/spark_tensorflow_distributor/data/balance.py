"""How the workers' shares are made equal, and what all of them have to know of all rows. Pure.

Spark's shuffle deals each of its partitions evenly, so the shares differ by a few rows. Those few are passed on, so
that in the end no two shares differ by more than one row, and no worker runs out of rows before the others.
"""

from collections.abc import Mapping, Sequence
from typing import Any


def plan_transfers(rows: Sequence[int]) -> list[tuple[int, int, int]]:
    """Who gives how many rows to whom: ``(giver, taker, rows)``.

    The same on every worker, and as few as can be.

    Args:
        rows: of each rank.
    """
    least, extra = divmod(sum(rows), len(rows))
    # The larger shares stay larger by one.
    by_size = sorted(range(len(rows)), key=lambda rank: (-rows[rank], rank))
    wanted = {rank: least + (place < extra) for place, rank in enumerate(by_size)}
    givers = [[rank, rows[rank] - wanted[rank]] for rank in range(len(rows)) if rows[rank] > wanted[rank]]
    takers = [[rank, wanted[rank] - rows[rank]] for rank in range(len(rows)) if rows[rank] < wanted[rank]]
    moves = []
    while givers:
        giver, taker = givers[0], takers[0]
        count = min(giver[1], taker[1])
        moves.append((giver[0], taker[0], count))
        for side, queue in ((giver, givers), (taker, takers)):
            side[1] -= count
            if not side[1]:
                queue.pop(0)
    return moves


def merge_facts(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What ``FrameSpool.facts`` of all workers come to.

    Returns:
        ``rows`` (of all), ``columns``: for each its ``nulls``, ``inner_nulls`` and ``nans`` (of all rows), and for
        arrays and texts ``lengths``, the least and the most at each level, -1 where there is none.
    """
    columns = []
    for parts in zip(*(each["columns"] for each in facts), strict=True):
        column: dict[str, Any] = {name: sum(part[name] for part in parts) for name in ("nulls", "inner_nulls", "nans")}
        if "lengths" in parts[0]:
            levels = zip(*(part["lengths"] for part in parts), strict=True)
            column["lengths"] = [_range([pair for pair in level if pair[1] >= 0]) for level in levels]
        columns.append(column)
    return {"rows": sum(each["rows"] for each in facts), "columns": columns}


def _range(pairs: Sequence[Sequence[int]]) -> list[int]:
    return [min(low for low, _ in pairs), max(high for _, high in pairs)] if pairs else [-1, -1]
