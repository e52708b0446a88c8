"""Finds the variables that workers have in common, from what each worker lists.

A worker lists its variables as texts (name, shape, type) with checksums of their values. A match is one index per rank.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

Listed: TypeAlias = "Sequence[tuple[str, int]]"
Match: TypeAlias = "tuple[int, ...]"


def by_position(ranks: Sequence[Listed]) -> list[Match]:
    """Match variables that every rank lists at the same position with the same text: those of one model."""
    columns = enumerate(zip(*ranks, strict=False))
    return [(index,) * len(ranks) for index, column in columns if len({text for text, _ in column}) == 1]


def by_text(ranks: Sequence[Listed]) -> list[Match]:
    """Match variables by text, and in order among those of the same text.

    If a rank lists a text more often than another, it is unknown which of its variables the other rank lacks, so none
    of them is matched.
    """
    indices: list[dict[str, list[int]]] = []
    for listed in ranks:
        indices.append({})
        for index, (text, _) in enumerate(listed):
            indices[-1].setdefault(text, []).append(index)
    alike = [text for text in indices[0] if len({len(each.get(text, ())) for each in indices}) == 1]
    return [match for text in alike for match in zip(*(each[text] for each in indices), strict=True)]


def unmatched_texts(ranks: Sequence[Listed]) -> list[str]:
    """Return the texts that all ranks list, but not equally often."""
    counts = [Counter(text for text, _ in listed) for listed in ranks]
    common = set(counts[0]).intersection(*counts[1:])
    return sorted(text for text in common if len({each[text] for each in counts}) > 1)


def differing(ranks: Sequence[Listed], matches: Sequence[Match]) -> list[Match]:
    """Return the matches whose checksums differ between ranks."""
    return [match for match in matches if len({ranks[rank][index][1] for rank, index in enumerate(match)}) > 1]
