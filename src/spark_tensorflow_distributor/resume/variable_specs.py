"""Describes variables, to tell whether two models have the same ones."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from .resume_point import VariableSpec

# A variable of TensorFlow, Keras 3 or tf_keras.
Variable: TypeAlias = Any


def describe(variables: Iterable[Variable]) -> list[VariableSpec]:
    """Return name, shape and type of each variable."""
    return [
        VariableSpec(
            str(each.name if is_tensorflows(each) else each.path),
            [int(size) for size in each.shape],
            str(getattr(each.dtype, "name", each.dtype)),
        )
        for each in variables
    ]


def difference(present: Sequence[VariableSpec], saved: Sequence[VariableSpec]) -> str:
    """Return how the variables of a model differ from those in a checkpoint."""
    if len(present) != len(saved):
        found = f"it holds {len(saved)} variables, but this model and its optimizer have {len(present)}"
    else:
        mine, theirs = next((a, b) for a, b in zip(present, saved, strict=True) if a[1:] != b[1:])
        found = f"it holds a variable {' '.join(map(str, theirs))}, but this model has {' '.join(map(str, mine))}"
    return f"It belongs to another model: {found}."


def is_tensorflows(variable: Variable) -> bool:
    """Return whether a variable is one of TensorFlow's own."""
    # By type, because looking up an attribute that a distributed variable lacks may read its value, with a collective.
    return type(variable).__module__.startswith("tensorflow.")
