"""Determines whether gradients are those of a loss that is already weighted by the replica's batch fraction.

``scale_loss`` weights a loss. Which optimizer applies its gradients is up to the program: an optimizer may pass them to
another one that it wraps, and a step may divide them between several optimizers, or also apply those of other losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from .graph_origins import is_argument, origins


class LossWeighting:
    """The losses of one step that are weighted, and what derives from them."""

    def __init__(self) -> None:
        self._pending: set[int] = set()  # ids of the optimizers that have scaled a loss and were not applied since
        self._products: set[tuple[int, str]] = set()  # the operations that weight gradients, by graph and name
        # In eager mode, where a tensor does not know what it was computed from: the results of tapes.
        self._results: dict[int, tuple[Any, bool]] = {}
        self._is_weighted = False

    @property
    def is_pending(self) -> bool:
        """Whether a loss was weighted whose gradients have not been applied yet."""
        return bool(self._pending)

    def scaled_by(self, optimizer: object) -> None:
        """Note that an optimizer has scaled, and thereby weighted, its loss."""
        self._pending.add(id(optimizer))

    def weights(self, product: tf.Tensor) -> None:
        """Note the product of a loss's gradient and the batch fraction, while gradients are computed."""
        self._is_weighted = True
        if not tf.executing_eagerly():
            self._products.add((id(product.graph), product.op.name))

    def begin_tape(self) -> None:
        """Note that a tape begins to compute gradients in eager mode."""
        self._is_weighted = False

    def end_tape(self, gradients: Any) -> None:
        """Note the gradients that a tape has computed in eager mode."""
        for each in map(_tensor_of, tf.nest.flatten(gradients)):
            self._results[id(each)] = each, self._is_weighted

    def covers(self, optimizer: object, gradients: Sequence[Any]) -> bool:
        """Return whether the gradients that an optimizer is about to apply are already weighted."""
        if id(optimizer) in self._pending:
            self._pending.discard(id(optimizer))  # the optimizer may be applied again, to another loss
            return True
        tensors = [_tensor_of(each) for each in gradients if each is not None]
        if not tensors:
            return False
        if tf.executing_eagerly():
            return self._results.get(id(tensors[-1]), (None, self._is_weighted))[1]
        if not tf.is_symbolic_tensor(tensors[-1]):
            return self._is_weighted
        return bool(self._products) and self._derives_from_product(tensors[-1])  # the last one is nearest to the loss

    def _derives_from_product(self, tensor: tf.Tensor) -> bool:
        """Return whether a tensor was computed from a weighted gradient, directly or through a variable."""
        is_of_batch = False
        for each in origins(tensor):
            if (id(each.graph), each.op.name) in self._products:
                return True
            is_of_batch = is_of_batch or is_argument(each)
        return self._is_weighted and not is_of_batch


def _tensor_of(gradient: Any) -> Any:
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
