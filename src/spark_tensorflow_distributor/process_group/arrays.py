"""Handles several arrays as if they were one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

# Of any shape.
AnyArray: TypeAlias = "np.ndarray[Any, Any]"

# TensorFlow uses the memory of an array without a copy if it is aligned to this many bytes.
ALIGNMENT = 64


def working_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in which values of ``dtype`` are summed and sent: float32 for types of two bytes."""
    return np.dtype(np.float32) if dtype.name in ("float16", "bfloat16") else dtype


class Layout:
    """Where several arrays of one type lie in a buffer, each aligned for TensorFlow.

    Args:
        shapes: The arrays' shapes.
        dtype: The type of the elements of the buffer.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], dtype: np.dtype[Any]) -> None:
        self._shapes, self._dtype = shapes, dtype
        self._sizes = [math.prod(shape) for shape in shapes]
        step = max(1, ALIGNMENT // dtype.itemsize)
        self._begins = list(itertools.accumulate((-(-size // step) * step for size in self._sizes), initial=0))
        #: The number of elements, including the gaps between the arrays.
        self.size = self._begins[-1]

    def allocate(self) -> tuple[AnyArray, list[AnyArray]]:
        """Return a new buffer, and the arrays in it. Nothing is initialised."""
        memory = np.empty(self.size * self._dtype.itemsize + ALIGNMENT, np.uint8)
        shift = -memory.ctypes.data % ALIGNMENT
        buffer = memory[shift : shift + self.size * self._dtype.itemsize].view(self._dtype)
        return buffer, [
            buffer[begin : begin + size].reshape(shape)
            for begin, size, shape in zip(self._begins, self._sizes, self._shapes, strict=False)
        ]

    def fill(
        self, arrays: Sequence[AnyArray], start: int, stop: int, target: AnyArray, scale: float | None = None
    ) -> None:
        """Write to the beginning of ``target`` what a section of the buffer would hold if it held the given arrays.

        Args:
            arrays: Contiguous arrays of the shapes of this layout.
            start: The first element of the section.
            stop: The end of the section.
            target: An array, which may have another type. Its elements in the gaps become zero.
            scale: Factor; None for 1.
        """
        for array, size, (begin, end) in zip(arrays, self._sizes, itertools.pairwise(self._begins), strict=True):
            first, last = max(start, begin), min(stop, begin + size)
            if first < last:
                piece, part = array.reshape(-1)[first - begin : last - begin], target[first - start : last - start]
                if scale is None:
                    np.copyto(part, piece, casting="unsafe")
                elif piece.dtype == part.dtype:
                    np.multiply(piece, part.dtype.type(scale), out=part)
                else:
                    np.multiply(piece.astype(part.dtype), part.dtype.type(scale), out=part)
            first, last = max(start, begin + size), min(stop, end)  # the gap after the array
            if first < last:
                target[first - start : last - start] = 0
