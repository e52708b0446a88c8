"""Handles several arrays as if they were one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

# Of any shape.
AnyArray: TypeAlias = "np.ndarray[Any, Any]"

# TensorFlow uses the memory of an array without a copy if it is aligned to this many bytes.
ALIGNMENT = 64


def working_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in which values of ``dtype`` are summed and sent: float32 for types of two bytes."""
    return np.dtype(np.float32) if dtype.name in ("float16", "bfloat16") else dtype


class Sequential:
    """Arrays of one type, laid end to end.

    Args:
        arrays: Contiguous arrays of any shape. Writing to this object writes to them.
    """

    def __init__(self, arrays: Sequence[AnyArray]) -> None:
        self._flat = [array.reshape(-1) for array in arrays]
        self._begins = list(itertools.accumulate((each.size for each in self._flat), initial=0))
        self.size = self._begins[-1]

    def pieces(self, start: int, stop: int) -> Iterator[tuple[AnyArray, int]]:
        """Yield the parts of the arrays between two elements, each with its distance from ``start`` in elements."""
        for array, begin in zip(self._flat, self._begins, strict=False):
            first, last = max(start, begin), min(stop, begin + array.size)
            if first < last:
                yield array[first - begin : last - begin], first - start

    def read(self, start: int, stop: int, target: AnyArray, scale: float | None = None) -> None:
        """Copy elements, multiplied by ``scale``, to the beginning of ``target``, which may have another type."""
        for piece, offset in self.pieces(start, stop):
            part = target[offset : offset + piece.size]
            if scale is None:
                np.copyto(part, piece, casting="unsafe")
            elif piece.dtype == part.dtype:
                np.multiply(piece, part.dtype.type(scale), out=part)
            else:
                np.multiply(piece.astype(part.dtype), part.dtype.type(scale), out=part)

    def write(self, start: int, stop: int, source: AnyArray) -> None:
        """Copy the beginning of ``source`` to these elements."""
        for piece, offset in self.pieces(start, stop):
            np.copyto(piece, source[offset : offset + piece.size], casting="unsafe")


def aligned(shapes: Sequence[tuple[int, ...]], dtype: np.dtype[Any]) -> tuple[AnyArray, list[AnyArray]]:
    """Return a buffer, and arrays of the given shapes in it that are aligned for TensorFlow.

    The gaps between the arrays are zeroed; the arrays are not initialised.
    """
    step = max(1, ALIGNMENT // dtype.itemsize)
    sizes = [int(np.prod(shape, dtype=np.int64)) for shape in shapes]
    begins = list(itertools.accumulate((-(-size // step) * step for size in sizes), initial=0))
    memory = np.empty(begins[-1] * dtype.itemsize + ALIGNMENT, np.uint8)
    shift = -memory.ctypes.data % ALIGNMENT
    buffer = memory[shift : shift + begins[-1] * dtype.itemsize].view(dtype)
    results = []
    for begin, end, size, shape in zip(begins[:-1], begins[1:], sizes, shapes, strict=True):
        buffer[begin + size : end] = 0
        results.append(buffer[begin : begin + size].reshape(shape))
    return buffer, results
