"""Compares a training step on all workers with the same step in one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..context import get_context

# How many of the gradients that differ most are shown.
_SHOWN = 5


@dataclass(frozen=True)
class StepComparison:
    """How a training step on all workers differs from the same step in one process; see :func:`compare_step`.

    Printed, it says in words what differs, and lists probable causes.

    Attributes:
        workers: The number of workers.
        tolerance: The largest relative difference that counts as equal.
        gradients: The relative difference of each gradient, by the variable's path: the norm of the difference, divided
            by the norm of the gradient in one process.
        logs: The values that the step has logged, by name: in one process, and on all workers.
        causes: What in this model is known to cause differences.
    """

    workers: int
    tolerance: float
    gradients: Mapping[str, float]
    logs: Mapping[str, tuple[float, float]]
    causes: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether all gradients and logs are equal within the tolerance."""
        return not self._different_gradients() and not self._different_logs()

    def _different_gradients(self) -> list[tuple[str, float]]:
        # Written so that a difference that is not a number counts as different.
        different = [(name, value) for name, value in self.gradients.items() if not value <= self.tolerance]
        return sorted(different, key=lambda each: each[1], reverse=True)

    def _different_logs(self) -> list[tuple[str, float, float]]:
        return [(name, *pair) for name, pair in self.logs.items() if not _relative(*pair) <= self.tolerance]

    def _workers(self) -> str:
        return f"{self.workers} worker{'' if self.workers == 1 else 's'}"

    def __str__(self) -> str:
        if self.is_equal:
            largest = max(self.gradients.values(), default=0.0)
            return (
                f"A step on {self._workers()} has the gradients and logs of one process "
                f"(largest relative difference of a gradient: {largest:.1e})."
            )
        lines = [f"A step on {self._workers()} differs from the same step in one process."]
        gradients = self._different_gradients()
        for name, value in gradients[:_SHOWN]:
            lines.append(f"  the gradient of {name} by {_percent(value)}")
        if len(gradients) > _SHOWN:
            lines.append(f"  and {len(gradients) - _SHOWN} more of {len(self.gradients)} gradients")
        for name, alone, together in self._different_logs():
            lines.append(f"  {name}: {together:.6g}, in one process {alone:.6g}")
        lines.append("Probable causes:")
        lines += [f"  - {cause}" for cause in (*self.causes, _ANY_MODEL)]
        return "\n".join(lines)


_ANY_MODEL = (
    "a loss, or a step of the program's own, that is not a mean over rows. docs/keras.md lists such programs, and what "
    'to write instead, under "What to write differently".'
)


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _relative(alone: float, together: float) -> float:
    if alone == together:
        return 0.0
    return abs(together - alone) / max(abs(alone), abs(together))


def compare_step(
    model: Any, x: Any, y: Any = None, sample_weight: Any = None, *, tolerance: float = 1e-3
) -> StepComparison:
    """Compare one training step on all workers with the same step in one process; nothing is trained.

    A few kinds of programs train differently on several workers, without an error: a loss that is a sum over the batch,
    for example, a root of a mean, or ``BatchNormalization`` without ``synchronized=True``. This function shows whether
    a model is one of them. It computes the step of ``fit`` twice, once by all workers together, each with its part of
    the batch, and once by each worker for the whole batch, and compares the gradients and the logs. Call it in the
    training function, on all workers, after ``compile`` and before ``fit``:

        print(compare_step(model, x[:256], y[:256]))

    Weights, optimizers, metrics and random generators are left as they were. Optimizers are not called: they get the
    gradients of the whole batch, so what they do is that of one process if the gradients are.

    Random numbers that a step draws, other than those of the dropout layers, differ between workers, so such steps are
    reported as different. The state of ``BatchNormalization`` and other layers is not compared; ``fit`` averages it at
    the end of each epoch.

    Args:
        model: A compiled model of Keras 3 or tf_keras whose variables exist. Its ``optimizer``, and other attributes
            that are optimizers, are replaced during the call.
        x: A global batch of inputs, as for ``model.train_on_batch``; the same on all workers.
        y: The targets; None if the model needs none.
        sample_weight: The weights of the rows; None for none.
        tolerance: The largest relative difference that counts as equal. Sums over the workers' parts are rounded
            differently from sums over a batch, which alone amounts to some 1e-6 with float32 and 1e-2 with float16.

    Returns:
        The differences; the same on all workers.

    Raises:
        ConfigurationError: The workers have different batches, the model is not compiled or has no variables yet, or
            the strategy is TensorFlow's own, as with several GPUs per task or ``use_custom_strategy``.
        DistributorError: The call is made outside of a training function.
    """
    world_size = get_context().world_size
    from .compared_steps import compare  # loads TensorFlow, so not outside of a training function

    return compare(model, (x, y, sample_weight), tolerance, world_size)
