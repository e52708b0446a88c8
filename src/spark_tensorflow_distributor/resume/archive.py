"""Reads the members of an untrusted checkpoint file.

Anyone with write access to ``checkpoint_dir`` can put any file there. Members must not be compressed, and their sizes
must not add up to more than the size of the file. Memory use is therefore limited by the size of the file, and every
size is checked before memory is allocated.
"""

import json
import math
import zipfile
from io import BytesIO
from typing import IO, Any

import numpy as np

from ..errors import CheckpointError

# Size limit for JSON members: once parsed, their values take up to twenty times as much memory as the text.
MAX_TEXT_BYTES = 64 << 20
# Values of ``np.dtype.kind`` for booleans, numbers, times and texts; neither Python objects nor structures.
_KINDS = "?biufcmMSU"
# These flags mean that a member's sizes follow its data, and that its name is UTF-8. Others mean encryption, patches
# and the like.
_HARMLESS_FLAGS = 0x0808


class Archive:
    """The members of a checkpoint file.

    Args:
        data: The contents of the file.

    Raises:
        CheckpointError: If the archive does not have the form that this library writes. The constructor and the methods
            may raise any other exception as well, because the data is arbitrary.
    """

    def __init__(self, data: bytes) -> None:
        self._archive = zipfile.ZipFile(BytesIO(data))
        members = self._archive.infolist()
        for each in members:
            if each.compress_type != zipfile.ZIP_STORED or each.compress_size != each.file_size:
                raise CheckpointError(f"its member {each.filename!r} is compressed")
            if each.flag_bits & ~_HARMLESS_FLAGS:
                raise CheckpointError(f"its member {each.filename!r} has the flags {each.flag_bits:#x}")
        total = sum(each.file_size for each in members)
        if total > len(data):
            raise CheckpointError(f"its members have {total} bytes together, but the file has {len(data)}")
        self._unread = {each.filename for each in members}

    def text(self, name: str) -> Any:
        """Parse a member as JSON."""
        size = self._archive.getinfo(name).file_size
        if size > MAX_TEXT_BYTES:
            raise CheckpointError(f"its member {name!r} has {size} bytes; the limit is {MAX_TEXT_BYTES}")
        return json.loads(self._archive.read(name))

    def array(self, number: int) -> np.ndarray:
        """Read an array, at most once: otherwise, a small file could have a large array read many times."""
        name = f"{int(number)}.npy"
        self._unread.remove(name)
        with self._archive.open(name) as part:
            value = _read_array(part, self._archive.getinfo(name).file_size)
            part.read()  # zipfile verifies the checksum at the end
        return value


def _read_array(part: IO[bytes], size: int) -> np.ndarray:
    version = np.lib.format.read_magic(part)
    if version != (1, 0):
        raise CheckpointError(f"it has an array in version {version} of NumPy's format")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(part)
    if dtype.kind not in _KINDS or dtype.subdtype is not None or not dtype.itemsize:
        raise CheckpointError(f"it has an array of type {dtype!s:.100}")
    if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != size - part.tell():
        raise CheckpointError(f"an array of shape {shape!s:.100} and type {dtype!s:.100} does not have {size} bytes")
    array: np.ndarray = np.empty(math.prod(shape), dtype)
    target = memoryview(array.view(np.uint8))  # type: ignore[arg-type]
    while target:
        count = part.readinto(target[: 1 << 20])  # type: ignore[attr-defined]
        if not count:
            raise EOFError("an array is incomplete")
        target = target[count:]
    return array.reshape(shape[::-1]).transpose() if is_fortran else array.reshape(shape)
