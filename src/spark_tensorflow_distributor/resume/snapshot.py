"""A checkpoint as one file: a nested structure of plain values and arrays, and its metadata.

The file is a zip archive like NumPy's own ``.npz``: ``facts.json``, ``state.json`` and one ``.npy`` per array. Every
member has a checksum, the archive's directory comes last, and nothing is ever unpickled: a truncated, damaged or
foreign file is recognised before any of it is used. ``numpy.load`` and any zip tool can open it. Long byte strings and
arrays of texts are stored as arrays, too, so the JSON stays small; :mod:`.archive` limits its size.
"""

import base64
import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from ..errors import CheckpointError
from ..formatting import a_type, mebibytes, one_line
from .archive import MAX_TEXT_BYTES, Archive

FORMAT = "spark_tensorflow_distributor checkpoint 2"
# A checkpoint's metadata, as JSON.
Facts: TypeAlias = Mapping[str, Any]

_FACTS, _STATE = "facts.json", "state.json"
_PLAIN = (type(None), bool, int, float, str)
# Longer byte strings are saved as arrays.
_INLINE_BYTES = 1024
# Limits the recursion of JSON parsers, which is as deep as the text is nested.
_MAX_DEPTH = 100


def write(file: BinaryIO, facts: Facts, state: object) -> None:
    """Write a checkpoint at the file's current position.

    Args:
        file: A binary file.
        facts: The checkpoint's metadata, as JSON.
        state: None, booleans, numbers, strings, bytes, arrays, and lists, tuples and dicts of these. An object with a
            ``numpy()`` method, such as a TensorFlow tensor or variable, is saved as an array.

    Raises:
        CheckpointError: If the state contains any other value, or takes too much JSON.
        OSError: If the file cannot be written.
    """
    arrays: list[np.ndarray] = []
    texts = {_FACTS: json.dumps({**facts, "format": FORMAT}), _STATE: json.dumps(_flatten(state, arrays, "state"))}
    if (size := max(map(len, texts.values()))) > MAX_TEXT_BYTES:
        raise CheckpointError(
            f"The numbers, strings and lists of the state take {mebibytes(size)} as JSON; the limit is "
            f"{mebibytes(MAX_TEXT_BYTES)}. Save long lists as NumPy arrays."
        )
    # Not compressed: weights hardly shrink, compression takes time, and reading never takes more memory than the size
    # of the file.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
        for number, array in enumerate(arrays):
            with archive.open(f"{number}.npy", "w", force_zip64=True) as part:
                np.lib.format.write_array(part, array, allow_pickle=False)


def copy_state(state: object) -> Any:
    """Return a copy of the state, made of plain values and NumPy arrays.

    Raises:
        CheckpointError: If the state contains a value that a checkpoint cannot hold.
    """
    arrays: list[np.ndarray] = []
    skeleton = _flatten(state, arrays, "state")
    copies = [np.array(array) for array in arrays]
    return _rebuild(skeleton, copies.__getitem__)


def fingerprint(state: object) -> bytes:
    """Return a digest that tells whether a checkpoint would hold the same values of a state as before.

    It stands for a copy where only the comparison matters, because a state may hold arrays as large as the data.

    Raises:
        CheckpointError: If the state contains a value that a checkpoint cannot hold.
    """
    arrays: list[np.ndarray] = []
    digest = hashlib.blake2b(json.dumps(_flatten(state, arrays, "state")).encode())
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.digest()


def read(data: bytes) -> tuple[Facts, Any]:
    """Read metadata and state, and verify every checksum.

    Args:
        data: The contents of a file; they may be arbitrary.

    Raises:
        CheckpointError: If the file is not a checkpoint, or is damaged.
    """
    try:
        archive = Archive(data)
        facts: Facts = archive.text(_FACTS)
        if facts.get("format") != FORMAT:
            raise CheckpointError(f"its format is {facts.get('format')!r:.100}, and this version reads {FORMAT!r}")
        return facts, _rebuild(archive.text(_STATE), archive.array)
    except CheckpointError:
        raise
    except Exception as error:  # parsers raise anything for a crafted file, RecursionError and MemoryError included
        reason = one_line(error)
        raise CheckpointError(f"it is damaged, incomplete or not a checkpoint of this library: {reason}") from error


def _flatten(value: object, arrays: list[np.ndarray], where: str, depth: int = 0) -> object:
    if isinstance(value, _PLAIN):
        return value
    if depth > _MAX_DEPTH:
        raise CheckpointError(f"The state is nested more than {_MAX_DEPTH} levels deep, or contains itself.")
    if isinstance(value, Mapping):
        pairs = [
            [_flatten(key, arrays, where, depth + 1), _flatten(each, arrays, f"{where}[{key!r}]", depth + 1)]
            for key, each in value.items()
        ]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_flatten(each, arrays, f"{where}[{index}]", depth + 1) for index, each in enumerate(value)]}
    if hasattr(value, "numpy"):
        value = value.numpy()
    if isinstance(value, np.ndarray | np.generic):
        return _flatten_array(np.asarray(value), arrays, where, is_scalar=isinstance(value, np.generic))
    if isinstance(value, bytes):  # also from a scalar string tensor
        if len(value) <= _INLINE_BYTES:
            return {"bytes": base64.b64encode(value).decode()}
        return {"bytes": _numbered(np.frombuffer(value, np.uint8), arrays)}
    raise CheckpointError(
        f"{where} is {a_type(value)}. A checkpoint can hold numbers, strings, bytes, arrays, tensors, "
        "variables, and lists, tuples and dicts of these. Save a model's get_weights() or an optimizer's variables."
    )


def _flatten_array(array: np.ndarray, arrays: list[np.ndarray], where: str, *, is_scalar: bool) -> object:
    if array.dtype.kind == "O":
        if array.size and not all(isinstance(each, bytes | str) for each in array.flat):
            raise CheckpointError(f"{where} is an array of Python objects, which a checkpoint cannot hold.")
        texts = [each.encode() if isinstance(each, str) else each for each in array.flat]
        data, sizes = np.frombuffer(b"".join(texts), np.uint8), np.array([len(each) for each in texts], np.int64)
        return {"texts": _numbered(data, arrays), "sizes": _numbered(sizes, arrays), "shape": list(array.shape)}
    entry: dict[str, object] = {}
    if is_scalar:
        entry["scalar"] = True
    if array.dtype.type.__module__ != "numpy":
        # NumPy's format does not support bfloat16 and similar types: save the bytes as integers, and name the type.
        entry["dtype"] = array.dtype.name
        array = array.view(f"u{array.dtype.itemsize}")
    elif array.dtype.kind == "V":
        raise CheckpointError(f"{where} is an array of the type {array.dtype}. Save its fields as separate arrays.")
    return {"array": _numbered(array, arrays), **entry}


def _numbered(array: np.ndarray, arrays: list[np.ndarray]) -> int:
    arrays.append(array)
    return len(arrays) - 1


def _rebuild(skeleton: Any, array: Callable[[int], np.ndarray]) -> Any:
    if not isinstance(skeleton, dict):
        return skeleton
    if "bytes" in skeleton:
        value = skeleton["bytes"]
        return base64.b64decode(value) if isinstance(value, str) else array(value).tobytes()
    if "dict" in skeleton:
        return {_rebuild(key, array): _rebuild(value, array) for key, value in skeleton["dict"]}
    if "list" in skeleton:
        return [_rebuild(each, array) for each in skeleton["list"]]
    if "tuple" in skeleton:
        return tuple(_rebuild(each, array) for each in skeleton["tuple"])
    if "texts" in skeleton:
        return _rebuild_texts(array(skeleton["texts"]).tobytes(), array(skeleton["sizes"]), skeleton["shape"])
    value = array(skeleton["array"])
    if "dtype" in skeleton:
        import ml_dtypes  # comes with TensorFlow

        kind = getattr(ml_dtypes, skeleton["dtype"])
        if not issubclass(kind, np.generic) or np.dtype(kind).itemsize != value.dtype.itemsize:
            raise CheckpointError(f"an array of {kind} has elements of {value.dtype.itemsize} bytes")
        value = value.view(kind)
    return value[()] if skeleton.get("scalar") else value


def _rebuild_texts(data: bytes, sizes: np.ndarray, shape: list[int]) -> np.ndarray:
    if sizes.dtype != np.int64 or sizes.ndim != 1 or (sizes < 0).any() or sum(sizes.tolist()) != len(data):
        raise CheckpointError("the sizes of an array of texts do not match its bytes")
    texts = np.empty(len(sizes), object)
    start = 0
    for index, size in enumerate(sizes.tolist()):
        texts[index] = data[start : start + size]
        start += size
    return texts.reshape(shape)
