"""What ``to_tf`` refuses, and in which words. Pure, on what is known of all workers' rows, so all ranks do the same."""

from collections.abc import Mapping
from numbers import Integral
from typing import Any

from ..errors import ConfigurationError, DataError
from .columns import nearest
from .store import MappedRows


class Checks:
    """The checks of one DataFrame.

    Args:
        store: its rows.
        what: the DataFrame's name, for messages.
        total: its rows on all workers.
    """

    def __init__(self, store: MappedRows, what: str, total: int) -> None:
        self._store, self._what, self._total = store, what, total

    def rows(self) -> None:
        if not self._total:
            raise DataError(f"{self._what} has no rows. Was everything filtered out, or joined away?")

    def column(self, name: str, fill: Mapping[str, Any], *, refuse_nan: bool) -> None:
        if name not in self._store.columns:
            known = self._store.columns
            near = nearest(name, known)
            raise DataError(f"{self._what} has no column {name!r}{near or '; it has ' + ', '.join(known)}.")
        _, column = self._store.columns[name]
        facts, of = self._store.facts(name), f"{self._what}, column {name!r}"
        if facts["nulls"] == self._total:
            raise DataError(f"{of}: all {self._total} rows are null. Did a join find nothing, or a cast fail?")
        if column.depth and (facts["nulls"] or facts["inner_nulls"]):
            raise DataError(
                f"{of}: {facts['nulls']} of {self._total} arrays are null, and {facts['inner_nulls']} values in arrays."
                " Fill or filter them in Spark (coalesce, transform, filter)."
            )
        if facts["nulls"] and name not in fill:
            raise DataError(
                f"{of}: {facts['nulls']} of {self._total} rows are null. Give fill_value (a value, or a dict by "
                "column), or drop or fill them in Spark (dropna, fillna)."
            )
        if name in fill and isinstance(fill[name], str | bytes) != column.is_bytes:
            raise DataError(f"{of}: fill_value is {fill[name]!r}, and the column is of type {column.spark_type}.")
        if refuse_nan and facts["nans"]:
            raise DataError(
                f"{of}: {facts['nans']} values are NaN, and refuse_nan is True. Fill or filter them in Spark (nanvl, "
                "isnan)."
            )

    def label(self, name: str) -> None:
        _, column = self._store.columns[name]
        if not column.is_number:
            raise DataError(
                f"{self._what}, label column {name!r}: it is of type {column.spark_type}, and a loss needs numbers."
                " Turn it into them in Spark (StringIndexer of pyspark.ml, a join, a cast)."
            )

    def weight(self, name: str) -> None:
        _, column = self._store.columns[name]
        if not column.is_number or column.depth:
            raise DataError(
                f"{self._what}, weight column {name!r}: it is of type {column.spark_type}, and a weight is a number."
            )

    def stackable(self, name: str, shape: tuple[int, ...] | None) -> None:
        _, column = self._store.columns[name]
        if not column.is_number or shape is None:
            kind = "ragged " if column.is_number else ""
            raise DataError(
                f"{self._what}, column {name!r}: it is {kind}{column.spark_type}, and stack=True puts numbers beside "
                "each other. Leave stack away to get a dict of tensors, "
                + ("or pad it (ragged='pad')." if kind else "or encode the column as numbers in Spark.")
            )

    def shape(self, name: str, choice: Any) -> tuple[int, ...] | None:
        """The shape of a row of the column; None for a ragged tensor."""
        _, column = self._store.columns[name]
        fixed = self._store.fixed_shape(name)
        if choice is not None and choice not in ("ragged", "pad") and not _is_length(choice):
            raise ConfigurationError(
                f"ragged is {choice!r} for the column {name!r}; it must be 'ragged', 'pad' or a length of at least 1."
            )
        if not column.depth or (fixed is not None and not _is_length(choice)):
            return fixed
        most = [max(most, 0) for _, most in self._store.facts(name)["lengths"][: column.depth]]
        if choice is None:
            least = self._store.facts(name)["lengths"][0][0]
            raise DataError(
                f"{self._what}, column {name!r}: its arrays have different lengths ({least} to {most[0]} at the "
                "outermost level). Choose with ragged='ragged' (a RaggedTensor), 'pad' (to the longest) or a number ("
                "pad or cut to it)."
            )
        if choice == "ragged":
            return None
        return (int(choice), *most[1:]) if _is_length(choice) else tuple(most)


def is_integer(value: Any) -> bool:
    """Whether the value is a whole number, NumPy's among them; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_length(choice: Any) -> bool:
    return is_integer(choice) and choice >= 1
