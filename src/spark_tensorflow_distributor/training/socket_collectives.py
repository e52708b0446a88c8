"""Collectives over a process group, on CPUs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import numpy as np
import tensorflow as tf

from ..process_group.group import ProcessGroup
from . import collectives
from .collectives import Collectives, wire_type
from .replica_step import current_method

_Arrays = Callable[[Sequence["np.ndarray[Any, Any]"]], Sequence["np.ndarray[Any, Any]"]]


class SocketCollectives(Collectives):
    """The collectives of a process group.

    In a graph, an operation of the group is a call into Python, to which TensorFlow passes its tensors as NumPy arrays
    without copying.

    Args:
        group: The group; this object does not close it.
        gradient_compression: The type in which gradients travel between machines, ``"bfloat16"`` or ``"float16"``; None
            to send them in their own type.
    """

    def __init__(self, group: ProcessGroup, gradient_compression: str | None = None) -> None:
        super().__init__(group.rank, group.world_size)
        self.group = group
        self.compresses_gradients = gradient_compression is not None
        self._wire = np.dtype(tf.as_dtype(gradient_compression).as_numpy_dtype) if gradient_compression else None
        with tf.init_scope(), tf.device("/device:CPU:0"):
            # This variable is written before and after each operation of a graph. TensorFlow keeps its writes in
            # program order, even across loops, conditions and functions, but not calls into Python.
            self._turn = tf.Variable(0, trainable=False, dtype=tf.int64, name="collective_turn")

    def _sum(self, tensor: tf.Tensor) -> tf.Tensor:
        return self._sum_all([tensor], None, compress=False)[0]

    def _stack(self, tensor: tf.Tensor) -> tf.Tensor:
        purpose, shape = _purpose(), [self.world_size, *tensor.shape]
        return self._call(lambda arrays: [self.group.all_gather(arrays[0], purpose)], [tensor], [shape])[0]

    def _sum_all(self, tensors: list[tf.Tensor], scale: tf.Tensor | None, *, compress: bool) -> list[tf.Tensor]:
        wire = self._wire if compress else None
        purpose, shapes = _purpose(), [tensor.shape for tensor in tensors]

        def all_reduce(arrays: Sequence[np.ndarray[Any, Any]]) -> Sequence[np.ndarray[Any, Any]]:
            factor = float(arrays[-1]) if len(arrays) > len(tensors) else None
            return self.group.all_reduce(arrays[: len(tensors)], factor, purpose, wire)

        sums: list[tf.Tensor] = self._call(all_reduce, tensors if scale is None else [*tensors, scale], shapes)
        return sums

    def _reduce_pack(self, tensors: list[tf.Tensor], scale: tf.Tensor | None, *, compress: bool) -> list[tf.Tensor]:
        dtype = tensors[0].dtype
        # Unlike TensorFlow's collectives, the group's take several arrays at once, and scale them.
        if dtype.is_floating and dtype == wire_type(dtype):
            return self._sum_all(tensors, scale, compress=compress)
        return super()._reduce_pack(tensors, scale, compress=compress)

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
    def _call(self, function: _Arrays, tensors: Sequence[tf.Tensor], shapes: Sequence[Any]) -> list[tf.Tensor]:
        """Call a function of arrays, eagerly or in a graph; its results have the type of the first array."""
        tensors = [tf.convert_to_tensor(tensor) for tensor in tensors]
        if tf.executing_eagerly():
            return [tf.convert_to_tensor(each) for each in function([tensor.numpy() for tensor in tensors])]

        def call(*arrays: np.ndarray[Any, Any]) -> Sequence[np.ndarray[Any, Any]]:
            return function(arrays)

        with tf.device("/device:CPU:0"):
            with tf.control_dependencies([self._turn.assign(0)]):
                results = tf.numpy_function(call, tensors, [tensors[0].dtype] * len(shapes))
            with tf.control_dependencies(results):
                self._turn.assign(0)
        return [tf.ensure_shape(result, shape) for result, shape in zip(results, shapes, strict=True)]


def _purpose() -> str:
    """Describe what the library needs the current operation for, to distinguish it from others of the same size."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_PACKAGE) and code.co_filename not in _COLLECTIVES:
            return f"{current_method()} {os.path.basename(code.co_filename)} {code.co_name}"
        frame = frame.f_back
    return current_method()  # the program's own code, or code that AutoGraph has generated


_COLLECTIVES = {_purpose.__code__.co_filename, collectives.wire_type.__wrapped__.__code__.co_filename}
_PACKAGE = os.path.dirname(os.path.dirname(_purpose.__code__.co_filename))
