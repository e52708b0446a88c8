"""Follows a step's graph backwards, from a tensor to those that it was computed from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf

_PLACEHOLDERS = {"Placeholder", "PlaceholderWithDefault"}


def origins(
    tensor: tf.Tensor, inputs: Callable[[tf.Operation], Iterable[tf.Tensor]] = lambda operation: operation.inputs
) -> Iterator[tf.Tensor]:
    """Yield a tensor and the tensors that it was computed from, also those that a function captures from its caller.

    Eager tensors, whose origin is unknown, are left out.

    Args:
        tensor: The tensor.
        inputs: Returns the inputs of an operation that are to be followed. Default: all.
    """
    waiting, seen = [tensor], set()
    while waiting:
        each = waiting.pop()
        if id(each) in seen or not tf.is_symbolic_tensor(each):
            continue
        seen.add(id(each))
        yield each
        outer = _captured_by(each) if each.op.type in _PLACEHOLDERS else None
        waiting += inputs(each.op) if outer is None else [outer]


def is_argument(tensor: tf.Tensor) -> bool:
    """Return whether a tensor is an argument of the step, such as the batch."""
    return tensor.op.type in _PLACEHOLDERS and _captured_by(tensor) is None


def _captured_by(placeholder: tf.Tensor) -> Any:
    """Return the outer tensor that a function's placeholder captures; None if the placeholder is an argument."""
    for outer, inner in getattr(placeholder.graph, "captures", ()):
        if inner is placeholder:
            return outer
    return None
