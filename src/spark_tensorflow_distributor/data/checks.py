"""Rejects invalid calls to ``to_tf``. Pure; uses facts about all workers' rows, so all ranks agree."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeGuard

from ..errors import ConfigurationError, DataError
from .columns import Column, nearest

if TYPE_CHECKING:  # it imports TensorFlow
    from .store import MappedRows


@dataclass(frozen=True)
class Advice:
    """What errors tell the caller to do.

    The default is for those who call ``to_tf``; users of estimators cannot pass its arguments.

    Attributes:
        nulls: If rows of a plain column are null.
        ragged: If arrays have different lengths.
    """

    nulls: str = "Pass fill_value (a value, or a dict by column), or fill or drop them in Spark (fillna, dropna)."
    ragged: str = (
        "Pass ragged='ragged' (for a RaggedTensor), 'pad' (to the longest) or a number (to pad or truncate to it)."
    )


_FOR_TO_TF = Advice()

# DataFrame.fillna and Imputer do not fill arrays.
ARRAY_NULLS_ADVICE = "Fill or filter them in Spark (coalesce, transform, filter)."


class Checks:
    """The checks of one DataFrame.

    Args:
        store: This worker's rows, and the facts about all rows.
        what: The DataFrame's name, for messages.
        total: Its number of rows on all workers.
        advice: What errors tell the caller to do.
    """

    def __init__(self, store: "MappedRows", what: str, total: int, advice: Advice = _FOR_TO_TF) -> None:
        self._store, self._what, self._total, self._advice = store, what, total, advice

    def rows(self) -> None:
        if not self._total:
            raise DataError(f"{self._what} has no rows. Did a filter or a join drop all of them?")

    def column(self, name: str, fill: Mapping[str, Any], *, refuse_nan: bool) -> None:
        column, facts = known_column(self._store, self._what, name), self._store.facts(name)
        subject = self._subject(name)
        if facts.nulls == self._total:
            raise DataError(f"{subject}: all {self._total} rows are null. Did a join match nothing, or a cast fail?")
        if column.depth and (facts.nulls or facts.inner_nulls):
            found = array_nulls_text(facts.nulls, self._total, facts.inner_nulls)
            raise DataError(f"{subject}: {found}. {ARRAY_NULLS_ADVICE}")
        if facts.nulls and name not in fill:
            raise DataError(f"{subject}: {facts.nulls} of {self._total} rows are null. {self._advice.nulls}")
        if name in fill and isinstance(fill[name], str | bytes) != column.is_bytes:
            raise DataError(f"{subject}: fill_value is {fill[name]!r}, but the column is of type {column.spark_type}.")
        if refuse_nan and facts.nans:
            raise DataError(
                f"{subject}: {facts.nans} values are NaN, and refuse_nan is True. Fill or filter them in Spark (nanvl, "
                "isnan)."
            )

    def label(self, name: str) -> None:
        column = self._store.columns[name]
        if not column.is_number:
            raise DataError(
                f"{self._subject(name, 'label ')}: it is of type {column.spark_type}, but a loss needs numbers. Encode "
                "it as numbers in Spark (StringIndexer of pyspark.ml, a join, a cast)."
            )

    def weight(self, name: str) -> None:
        column = self._store.columns[name]
        if not column.is_number or column.depth:
            raise DataError(
                f"{self._subject(name, 'weight ')}: it is of type {column.spark_type}, but a weight is one number."
            )

    def stackable(self, name: str, shape: tuple[int, ...] | None) -> None:
        column = self._store.columns[name]
        if column.is_number and shape is not None:
            return
        kind, remedy = "", "encode the column as numbers in Spark"
        if column.is_number:
            kind, remedy = "ragged ", "pad it (ragged='pad')"
        raise DataError(
            f"{self._subject(name)}: it is {kind}{column.spark_type}, and stack=True concatenates numbers. Omit stack "
            f"to get a dict of tensors, or {remedy}."
        )

    def shape(self, name: str, choice: str | int | None) -> tuple[int, ...] | None:
        """Return the shape of the column's rows; None for a ragged tensor.

        Args:
            name: The column.
            choice: The ``ragged`` argument of ``to_tf`` for this column.
        """
        column, fixed = self._store.columns[name], self._store.fixed_shape(name)
        if choice is not None and choice not in ("ragged", "pad") and not _is_length(choice):
            raise ConfigurationError(
                f"ragged is {choice!r} for the column {name!r}; it must be 'ragged', 'pad' or a length of at least 1."
            )
        if not column.depth or (fixed is not None and not _is_length(choice)):
            return fixed
        lengths = self._store.facts(name).lengths[: column.depth]
        longest = [max(most, 0) for _, most in lengths]
        if choice is None:
            raise DataError(
                f"{self._subject(name)}: its arrays have different lengths ({lengths[0][0]} to {longest[0]} at the "
                f"outermost level). {self._advice.ragged}"
            )
        if choice == "ragged":
            return None
        return (int(choice), *longest[1:]) if _is_length(choice) else tuple(longest)

    def _subject(self, name: str, role: str = "") -> str:
        return f"{self._what}, {role}column {name!r}"


def known_column(store: "MappedRows", what: str, name: str) -> Column:
    """Return the column with a name.

    Raises:
        DataError: If there is no such column.
    """
    if name not in store.columns:
        hint = nearest(name, store.columns) or f"; it has {', '.join(store.columns)}"
        raise DataError(f"{what} has no column {name!r}{hint}.")
    return store.columns[name]


def array_nulls_text(nulls: int, total: int, inner_nulls: int) -> str:
    """Describe the nulls of a column of arrays: ``"2 of 10 arrays are null and 1 value in arrays is null"``.

    Args:
        nulls: How many arrays are null.
        total: The number of rows.
        inner_nulls: How many values inside arrays are null.
    """
    found = [f"{nulls} of {total} arrays {_are(nulls)} null"] if nulls else []
    if inner_nulls:
        found.append(f"{inner_nulls} value{'s' * (inner_nulls != 1)} in arrays {_are(inner_nulls)} null")
    return " and ".join(found)


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def is_integer(value: object) -> TypeGuard[int]:
    """Return whether a value is a Python or NumPy integer; booleans do not count."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_length(choice: str | int | None) -> TypeGuard[int]:
    return is_integer(choice) and choice >= 1
