"""Records the gradients that optimizers are called with, in place of applying them."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from .variable_sync import plain_variable


class GradientsRecorded(Exception):
    """Ends a call of an optimizer whose gradients have been recorded."""


class GradientRecorder:
    """The gradients of one step.

    Attributes:
        gradients: The sums of the gradients of the whole batch, for each optimizer in the order of its first call, by
            the id of the variable.
        own_norms: For each optimizer, the norm of all gradients that this worker has passed to it.
    """

    def __init__(self) -> None:
        self.gradients: list[dict[int, np.ndarray[Any, Any]]] = []
        self.own_norms: list[float] = []
        self._optimizers: list[Any] = []

    def add(self, optimizer: Any, own: Sequence[Any], combined: Sequence[Any], variables: Sequence[Any]) -> None:
        """Record a call of an optimizer.

        Args:
            optimizer: The optimizer, or any object that stands for it.
            own: This worker's gradients: eager tensors, IndexedSlices or None.
            combined: The gradients of the whole batch, likewise.
            variables: The variable of each gradient.
        """
        index = next((i for i, each in enumerate(self._optimizers) if each is optimizer), len(self._optimizers))
        if index == len(self._optimizers):
            self._optimizers.append(optimizer)
            self.gradients.append({})
            self.own_norms.append(0.0)
        totals = self.gradients[index]
        for gradient, variable in zip(combined, variables, strict=True):
            if gradient is not None:
                key, value = id(plain_variable(variable)), _array(gradient)
                totals[key] = totals[key] + value if key in totals else value
        own_norms = [norm(_array(gradient)) for gradient in own if gradient is not None]
        self.own_norms[index] = math.hypot(self.own_norms[index], *own_norms)


def norm(array: np.ndarray[Any, Any]) -> float:
    """Return the Euclidean norm of an array of any type and shape."""
    wide = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    return float(np.linalg.norm(wide.reshape(-1)))


def _array(gradient: Any) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = tf.convert_to_tensor(gradient).numpy()
    return array


_recorder: contextvars.ContextVar[GradientRecorder | None] = contextvars.ContextVar("gradient_recorder", default=None)


@contextlib.contextmanager
def recording() -> Iterator[GradientRecorder]:
    """Record gradients within the context, in which steps must run eagerly."""
    recorder = GradientRecorder()
    token = _recorder.set(recorder)
    try:
        yield recorder
    finally:
        _recorder.reset(token)


def record_if_comparing(optimizer: Any, own: Sequence[Any], combined: Sequence[Any], variables: Sequence[Any]) -> bool:
    """Record a call of an optimizer if gradients are being recorded; return whether they are.

    If so, the optimizer must not apply them.
    """
    recorder = _recorder.get()
    if recorder is not None:
        recorder.add(optimizer, own, combined, variables)
    return recorder is not None
