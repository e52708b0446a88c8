"""A model's weights as bytes, without their shapes: all models of a DataFrame have the same. Pure."""

import struct
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...errors import SerializationError

if TYPE_CHECKING:
    import numpy.typing as npt

# The layout's version, and the checksum of what follows.
_HEADER = struct.Struct("<4sI")
_MARK = b"KGW1"


def pack_weights(weights: "Sequence[npt.NDArray[Any]]") -> bytes:
    """Return the arrays as bytes."""
    data = b"".join(array.tobytes() for array in weights)
    return _HEADER.pack(_MARK, zlib.crc32(data)) + data


def unpack_weights(data: bytes, likes: "Sequence[npt.NDArray[Any]]") -> "list[npt.NDArray[Any]]":
    """Return the arrays that :func:`pack_weights` packed.

    Args:
        data: The bytes.
        likes: Arrays with the shapes and types of the result.

    Raises:
        SerializationError: The bytes are damaged, or belong to another model.
    """
    import numpy as np

    mark, checksum = _HEADER.unpack_from(data) if len(data) >= _HEADER.size else (b"", 0)
    content = memoryview(data)[_HEADER.size :]
    size = sum(like.nbytes for like in likes)
    if mark != _MARK or len(content) != size or zlib.crc32(content) != checksum:
        raise SerializationError(
            f"The weights of a group, {len(data)} bytes, are damaged or belong to another model, which takes "
            f"{size + _HEADER.size} bytes. Save and load all files of a group model together."
        )
    arrays, start = [], 0
    for like in likes:
        arrays.append(np.frombuffer(content[start : start + like.nbytes], like.dtype).reshape(like.shape))
        start += like.nbytes
    return arrays
