"""How a training step on all workers differs from the same step in one process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

# How many of the gradients that differ most are shown.
_SHOWN = 5
# Logs that differ by less are equal: a loss of about zero consists of rounding errors.
_LEAST_LOG = 1e-6


@dataclass(frozen=True)
class StepComparison:
    """How a training step on all workers differs from the same step in one process; see :func:`compare_step`.

    ``str()`` describes the differences and lists probable causes.

    Attributes:
        workers: The number of workers.
        tolerance: The largest relative difference that counts as equal.
        differences: The relative differences by name, such as ``"the gradient of dense/kernel"``: the norm of the
            difference, divided by the norm of the gradient in one process. If a ``train_step`` changes a trainable
            variable itself, without an optimizer, that change is compared as well.
        logs: The step's scalar logs by name, each as a pair: in one process, on all workers.
        causes: The parts of this model that are known to cause differences.
    """

    workers: int
    tolerance: float
    differences: Mapping[str, float]
    logs: Mapping[str, tuple[float, float]]
    causes: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether all gradients and logs are equal within the tolerance."""
        return not self._different() and not self._different_logs()

    def _different(self) -> list[tuple[str, float]]:
        # "not <=" instead of ">", so that NaN counts as different.
        different = [(name, value) for name, value in self.differences.items() if not value <= self.tolerance]
        return sorted(different, key=lambda each: math.inf if math.isnan(each[1]) else each[1], reverse=True)

    def _different_logs(self) -> list[tuple[str, float, float]]:
        return [
            (name, alone, together)
            for name, (alone, together) in self.logs.items()
            if not (math.isnan(alone) and math.isnan(together))
            and not abs(together - alone) <= self.tolerance * max(abs(alone), abs(together)) + _LEAST_LOG
        ]

    def __str__(self) -> str:
        if self.workers == 1:
            return "A step on 1 worker is a step in one process."
        if self.is_equal:
            largest = max(self.differences.values(), default=0.0)
            return (
                f"A step on {self.workers} workers computes the same gradients and logs as one process (largest "
                f"relative difference of a gradient: {largest:.1e})."
            )
        lines = [f"A step on {self.workers} workers differs from the same step in one process."]
        different = self._different()
        lines += [f"  {name} differs by {100 * value:.3g}%" for name, value in different[:_SHOWN]]
        if len(different) > _SHOWN:
            lines.append(f"  and {len(different) - _SHOWN} more, of {len(self.differences)} in all")
        for name, alone, together in self._different_logs():
            lines.append(f"  {name} is {together:.6g} instead of {alone:.6g}")
        lines.append("Probable causes:")
        lines += [f"  - {cause}" for cause in (*self.causes, _ANY_MODEL)]
        return "\n".join(lines)


_ANY_MODEL = (
    'a custom loss or train_step that is not a mean over rows; see "What to write differently" in docs/keras.md.'
)
