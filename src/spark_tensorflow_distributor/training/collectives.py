"""Collectives: the only channel through which the workers of a group exchange tensors and bytes.

Every rank must make the same calls in the same order, eagerly or within a ``tf.function``. An engine provides two
primitives, for tensors whose shapes are equal on all ranks; everything else is built on them.
"""

from __future__ import annotations

import abc
import functools
import sys
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from ..errors import DataError

# Maximum number of bytes per collective when bytes are broadcast.
_CHUNK_BYTES = 64 << 20
# Maximum size of a pack: a collective takes one to three milliseconds, and copying this many bytes about one.
_PACK_BYTES = 4 << 20


class Collectives(abc.ABC):
    """The collectives of a group, as seen by one rank.

    Args:
        rank: This worker's rank.
        world_size: The number of workers.
    """

    #: Whether ``all_reduce_packed(compress=True)`` rounds the tensors.
    compresses_gradients = False

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size

    @abc.abstractmethod
    def _sum(self, tensor: tf.Tensor) -> tf.Tensor:
        """Return the sum over all ranks of a tensor of float16, bfloat16, float32, float64, int32 or int64."""

    @abc.abstractmethod
    def _stack(self, tensor: tf.Tensor) -> tf.Tensor:
        """Return the tensors of all ranks, ``[world_size, *shape]``; supports the same types as :meth:`_sum`."""

    def all_reduce(self, tensor: tf.Tensor) -> tf.Tensor:
        """Return the sum over all ranks of a tensor of any numeric type; for booleans, the int32 count of True."""
        if self.world_size == 1:
            return tensor
        if tensor.dtype.is_complex:
            parts = self._sum(tf.stack([tf.math.real(tensor), tf.math.imag(tensor)]))
            return tf.complex(parts[0], parts[1])
        wire = wire_type(tensor.dtype)
        total = self._sum(tf.cast(tensor, wire))
        return total if tensor.dtype in (wire, tf.bool) else tf.cast(total, tensor.dtype)

    def all_reduce_packed(
        self, tensors: Sequence[tf.Tensor], scale: tf.Tensor | None = None, *, compress: bool = False
    ) -> list[tf.Tensor]:
        """Return the sums of several tensors, with as few collectives as reasonable.

        Args:
            tensors: In the order in which they become available; neighbours of the same type are packed together.
            scale: Factor for this rank's tensors; scalar, None for 1.
            compress: Send them in the type that the user chose for gradients, if the engine supports it.
        """
        results: list[tf.Tensor] = list(tensors)
        if self.world_size == 1:
            return results
        by_dtype: dict[tf.DType, list[int]] = {}
        for index, tensor in enumerate(tensors):
            by_dtype.setdefault(tensor.dtype, []).append(index)
        for indices in by_dtype.values():
            for pack in _packs([(index, tensors[index]) for index in indices], _PACK_BYTES):
                sums = self._reduce_pack([tensor for _, tensor in pack], scale, compress=compress)
                for (index, _), summed in zip(pack, sums, strict=True):
                    results[index] = summed
        return results

    def _reduce_pack(self, tensors: list[tf.Tensor], scale: tf.Tensor | None, *, compress: bool) -> list[tf.Tensor]:
        del compress  # used only by engines that compress

        def scaled(tensor: tf.Tensor) -> tf.Tensor:
            return tensor if scale is None else tensor * tf.cast(scale, tensor.dtype)

        if len(tensors) == 1:
            return [self.all_reduce(scaled(tensors[0]))]
        flat = self.all_reduce(scaled(tf.concat([tf.reshape(each, [-1]) for each in tensors], axis=0)))
        sizes = [each.shape.num_elements() for each in tensors]
        pieces = tf.split(flat, sizes if None not in sizes else [tf.size(each) for each in tensors])
        return [
            tf.ensure_shape(tf.reshape(piece, tf.shape(each)), each.shape)
            for piece, each in zip(pieces, tensors, strict=True)
        ]

    def all_gather(self, tensor: tf.Tensor) -> tf.Tensor:
        """Return the tensors of all ranks, ``[world_size, *shape]``; shapes must be equal on all ranks.

        Supports numbers, booleans and strings.
        """
        if self.world_size == 1:
            return tensor[tf.newaxis]
        if tensor.dtype == tf.string:
            return self._gather_strings(tensor)
        if tensor.dtype.is_complex:
            parts = self._stack(tf.stack([tf.math.real(tensor), tf.math.imag(tensor)]))
            return tf.complex(parts[:, 0], parts[:, 1])
        wire = wire_type(tensor.dtype)
        return tf.cast(self._stack(tf.cast(tensor, wire)), tensor.dtype)

    def _gather_strings(self, tensor: tf.Tensor) -> tf.Tensor:
        """Return the strings of all ranks, which travel as integers of four bytes, padded to the longest string."""
        lengths = self.all_gather(tf.strings.length(tensor))
        width = -(-tf.maximum(tf.reduce_max(lengths), 1) // 4)
        is_little = sys.byteorder == "little"
        words = self._stack(tf.io.decode_raw(tensor, tf.int32, little_endian=is_little, fixed_length=4 * width))
        octets = tf.reshape(tf.bitcast(words, tf.uint8), tf.concat([tf.shape(lengths), [4 * width]], axis=0))
        alphabet = tf.constant([bytes([octet]) for octet in range(256)])
        joined = tf.strings.reduce_join(tf.gather(alphabet, tf.cast(octets, tf.int32)), axis=-1)
        strings = tf.strings.substr(joined, tf.zeros_like(lengths), lengths)
        return tf.ensure_shape(strings, [self.world_size, *tensor.shape])

    def gather_rows(self, tensor: tf.Tensor) -> tf.Tensor:
        """Return the rows of all ranks, concatenated in rank order; ranks may have different numbers of rows."""
        if self.world_size == 1:
            return tensor
        count = tf.shape(tensor, out_type=tf.int32)[0]
        counts = self.all_gather(count)
        most = tf.reduce_max(counts)
        widths = tf.concat([[[0, most - count]], tf.zeros([tf.rank(tensor) - 1, 2], tf.int32)], axis=0)
        padded = self.all_gather(tf.pad(tensor, widths))
        rows = tf.boolean_mask(padded, tf.sequence_mask(counts, most))
        return tf.ensure_shape(rows, [None, *tensor.shape[1:]])

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Return the data of all ranks, in rank order."""
        if self.world_size == 1:
            return [data]
        lengths = self.all_gather(tf.constant(len(data), tf.int64)).numpy()
        padded = data.ljust(4 * -(-int(lengths.max()) // 4), b"\0")
        if not padded:
            return [b""] * self.world_size
        rows = self.all_gather(tf.constant(np.frombuffer(padded, np.int32))).numpy()
        return [row.tobytes()[:length] for row, length in zip(rows, lengths, strict=True)]

    def broadcast_bytes(self, data: bytes | None) -> bytes | None:
        """Return rank 0's data, which may be None; the arguments of the other ranks are ignored."""
        if self.world_size == 1:
            return data
        is_source = self.rank == 0
        length = int(self.all_reduce(tf.constant(len(data) + 1 if is_source and data is not None else 0, tf.int64)))
        if not length:
            return None
        chunks = []
        for start in range(0, length - 1, _CHUNK_BYTES):
            size = min(_CHUNK_BYTES, length - 1 - start)
            words = np.zeros(-(-size // 4), np.int32)
            if is_source and data is not None:
                words.view(np.uint8)[:size] = np.frombuffer(data, np.uint8, size, start)
            chunks.append(self.all_reduce(tf.constant(words)).numpy().tobytes()[:size])
        return b"".join(chunks)

    def broadcast(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return rank 0's arrays; shapes and types must be equal on all ranks."""
        data = self.broadcast_bytes(b"".join(np.ascontiguousarray(each).tobytes() for each in arrays))
        results, start = [], 0
        for each in arrays:
            values = np.frombuffer(data or b"", each.dtype, each.size, start)
            results.append(values.reshape(each.shape))
            start += each.nbytes
        return results

    def means(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the means of arrays of floats over all ranks; computed in float64 for float64, else in float32."""
        exact = [each.astype(np.float64 if each.dtype == np.float64 else np.float32) for each in arrays]
        sums = self.all_reduce_packed([tf.constant(each) for each in exact])
        return [
            np.asarray((each.numpy() / self.world_size).astype(array.dtype))
            for each, array in zip(sums, arrays, strict=True)
        ]

    def wait(self) -> None:
        """Wait until every rank has called this."""
        if self.world_size > 1:
            self.all_reduce(tf.constant(0)).numpy()


class NoCollectives(Collectives):
    """The collectives of a group of one worker."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def _sum(self, tensor: tf.Tensor) -> tf.Tensor:
        return tensor

    def _stack(self, tensor: tf.Tensor) -> tf.Tensor:
        return tensor[np.newaxis]


NO_COLLECTIVES = NoCollectives()


@functools.cache
def wire_type(dtype: tf.DType) -> tf.DType:
    """Return the type in which tensors of ``dtype`` travel between the workers.

    Raises:
        DataError: If it is not a type of numbers or booleans.
    """
    if dtype in (tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.int32, tf.int64):
        return dtype
    if dtype.is_floating:
        return tf.float32
    if dtype.is_integer or dtype == tf.bool:
        return tf.int32 if dtype in (tf.bool, tf.int8, tf.uint8, tf.int16, tf.uint16) else tf.int64
    raise DataError(
        f"The workers cannot exchange a tensor of type {dtype.name}. They can add up and gather numbers and booleans, "
        "and gather strings. Such a tensor is exchanged, for example, if it is an output of predict, or an argument of "
        "all_reduce or all_gather: convert it to one of these types."
    )


def _packs(tensors: Sequence[tuple[int, tf.Tensor]], limit: int) -> list[list[tuple[int, tf.Tensor]]]:
    """Group neighbours of up to ``limit`` bytes together; a larger tensor stays alone, to avoid copying it."""
    result: list[list[tuple[int, tf.Tensor]]] = []
    space = 0
    for index, tensor in tensors:
        elements = tensor.shape.num_elements()
        size = limit if elements is None else elements * tensor.dtype.size
        if size > space:
            result.append([])
            space = limit
        result[-1].append((index, tensor))
        space -= size
    return result
