"""The table of programs.

A program is a function of the Keras package in a module ``programs_*.py``. It is written as if for one process, and
returns named arrays: ``outcome(model, history, ...)``. Workers must return the same arrays.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conformance.table import Case

PROGRAMS: dict[str, Case] = {}


def program(
    *,
    keras_3_only: bool = False,
    rtol: float = 1e-3,
    atol: float = 1e-4,
    since: tuple[int, int] = (3, 10),
    unequal: str = "",
) -> Callable[[Callable[..., dict[str, Any]]], Callable[..., dict[str, Any]]]:
    """Add a function to the table.

    Args:
        keras_3_only: Whether the program uses a feature that tf_keras lacks.
        rtol: Relative tolerance against one process.
        atol: Absolute tolerance.
        since: The first release of Keras 3 on which the program computes the numbers of one process.
        unequal: Why the numbers cannot be those of one process. They must then be finite, and the same on all ranks.
    """

    def register(run: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        packages = ("keras",) if keras_3_only else ("keras", "tf_keras")
        assert run.__name__ not in PROGRAMS, run.__name__
        subject = run.__module__.rpartition("programs_")[2]
        PROGRAMS[run.__name__] = Case(subject, run, packages, rtol, atol, since, None, unequal)
        return run

    return register


def falls(history: Any, name: str = "loss") -> None:
    """Fail unless a value in the history is smaller at the end than at the beginning."""
    values = history.history[name]
    assert values[-1] < values[0], f"{name}: {values}"


def load() -> dict[str, Case]:
    """Return the programs of all modules of this folder."""
    for file in sorted(Path(__file__).parent.glob("programs_*.py")):
        importlib.import_module(f"{__package__}.{file.stem}")
    return PROGRAMS
