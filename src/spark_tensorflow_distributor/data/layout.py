"""How the rows of a DataFrame travel: what describes a frame, and how its rows are numbered."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .columns import Column

# A row's id: the number of its partition above these bits, its number in that below (Spark's
# monotonically_increasing_id).
ROW_BITS = 33


@dataclass(frozen=True)
class FrameSpec:
    """What the workers are told of a DataFrame.

    Attributes:
        name: of the argument.
        columns: as it was taken apart.
        places: for each column its place in the stage's input, after the row's id and the frame's number.
        schema: Spark's, as ``StructType.jsonValue()``.
        expected_rows: how many there are in all, where Spark knows.
    """

    name: str
    columns: tuple[Column, ...]
    places: tuple[int, ...]
    schema: Mapping[str, Any]
    expected_rows: int | None = None
