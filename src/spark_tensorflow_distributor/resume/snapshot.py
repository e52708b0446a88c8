"""A checkpoint as one file: a nested structure of plain values and arrays, with facts about it.

The file is a zip archive like NumPy's own ``.npz``: ``facts.json``, ``state.json`` and one ``.npy`` per array. Every
member has a checksum, the archive's directory comes last, and nothing is ever unpickled: a truncated, damaged or
foreign file is recognised before any of it is used. ``numpy.load`` and any zip tool can open it.
"""

import base64
import json
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from ..errors import CheckpointError

FORMAT = "spark_tensorflow_distributor checkpoint 1"
# What a checkpoint says about itself, as JSON.
Facts: TypeAlias = Mapping[str, Any]

_FACTS, _STATE = "facts.json", "state.json"
_PLAIN = (type(None), bool, int, float, str)


def write(file: BinaryIO, facts: Facts, state: object) -> None:
    """Write a checkpoint at the file's current position.

    Args:
        file: A binary file.
        facts: What the checkpoint says about itself, as JSON.
        state: None, booleans, numbers, strings, bytes, arrays, and lists, tuples and dicts of these. An object with a
            ``numpy()`` method, such as a TensorFlow tensor or variable, is saved as an array.

    Raises:
        CheckpointError: The state holds something else.
        OSError: The file cannot be written.
    """
    arrays: list[np.ndarray] = []
    skeleton = _flatten(state, arrays, "state")
    # Not compressed: weights hardly shrink, and compression takes time.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_FACTS, json.dumps({**facts, "format": FORMAT}))
        archive.writestr(_STATE, json.dumps(skeleton))
        for number, array in enumerate(arrays):
            with archive.open(f"{number}.npy", "w", force_zip64=True) as part:
                np.lib.format.write_array(part, array, allow_pickle=False)


def copy_state(state: object) -> Any:
    """Return a copy of the state, made of plain values and NumPy arrays.

    Raises:
        CheckpointError: It holds something that a checkpoint cannot.
    """
    arrays: list[np.ndarray] = []
    skeleton = _flatten(state, arrays, "state")
    copies = [np.array(array) for array in arrays]
    return _rebuild(skeleton, copies.__getitem__)


def read_facts(file: BinaryIO) -> Facts:
    """Read the facts only.

    Raises:
        CheckpointError: The file is not a checkpoint, or is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            facts: Facts = json.loads(archive.read(_FACTS))
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, NotImplementedError) as error:
        raise CheckpointError(f"it is damaged, incomplete or not a checkpoint of this library: {error}") from error
    if facts.get("format") != FORMAT:
        raise CheckpointError(f"its format is {facts.get('format')!r}, and this version reads {FORMAT!r}")
    return facts


def read(file: BinaryIO) -> tuple[Facts, Any]:
    """Read facts and state, and verify every checksum.

    Raises:
        CheckpointError: The file is not a checkpoint, or is damaged.
    """
    facts = read_facts(file)
    try:
        with zipfile.ZipFile(file) as archive:
            skeleton = json.loads(archive.read(_STATE))

            def array(number: int) -> np.ndarray:
                with archive.open(f"{number}.npy") as part:
                    value: np.ndarray = np.lib.format.read_array(part, allow_pickle=False)
                    part.read()  # the checksum is verified at the end
                    return value

            return facts, _rebuild(skeleton, array)
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, EOFError, NotImplementedError) as error:
        raise CheckpointError(f"it is damaged: {error}") from error


def _flatten(value: object, arrays: list[np.ndarray], where: str) -> object:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        pairs = [
            [_flatten(key, arrays, where), _flatten(each, arrays, f"{where}[{key!r}]")] for key, each in value.items()
        ]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_flatten(each, arrays, f"{where}[{index}]") for index, each in enumerate(value)]}
    if hasattr(value, "numpy"):
        value = value.numpy()
    if isinstance(value, np.ndarray | np.generic):
        return _flatten_array(np.asarray(value), arrays, where, is_scalar=isinstance(value, np.generic))
    if isinstance(value, bytes):  # from a scalar string tensor
        return {"bytes": base64.b64encode(value).decode()}
    raise CheckpointError(
        f"{where} is a {type(value).__name__}. A checkpoint can hold numbers, strings, bytes, arrays, tensors, "
        "variables, and lists, tuples and dicts of these; save a model's get_weights(), an optimizer's variables."
    )


def _flatten_array(array: np.ndarray, arrays: list[np.ndarray], where: str, *, is_scalar: bool) -> object:
    if array.dtype.kind == "O":
        if array.size and not all(isinstance(each, bytes | str) for each in array.flat):
            raise CheckpointError(f"{where} is an array of Python objects, which a checkpoint cannot hold.")
        texts = [each.encode() if isinstance(each, str) else each for each in array.flat]
        return {"texts": [base64.b64encode(each).decode() for each in texts], "shape": list(array.shape)}
    entry: dict[str, object] = {"array": len(arrays)}
    if is_scalar:
        entry["scalar"] = True
    if array.dtype.kind == "V" or array.dtype.type.__module__ != "numpy":
        # NumPy's format does not know bfloat16 and similar types: save the bytes as integers, and name the type.
        entry["dtype"] = array.dtype.name
        array = array.view(f"u{array.dtype.itemsize}")
    arrays.append(array)
    return entry


def _rebuild(skeleton: Any, array: Callable[[int], np.ndarray]) -> Any:
    if not isinstance(skeleton, dict):
        return skeleton
    if "bytes" in skeleton:
        return base64.b64decode(skeleton["bytes"])
    if "dict" in skeleton:
        return {_rebuild(key, array): _rebuild(value, array) for key, value in skeleton["dict"]}
    if "list" in skeleton:
        return [_rebuild(each, array) for each in skeleton["list"]]
    if "tuple" in skeleton:
        return tuple(_rebuild(each, array) for each in skeleton["tuple"])
    if "texts" in skeleton:
        texts = np.array([base64.b64decode(each) for each in skeleton["texts"]], object)
        return texts.reshape(skeleton["shape"])
    value = array(skeleton["array"])
    if "dtype" in skeleton:
        import ml_dtypes  # comes with TensorFlow

        value = value.view(np.dtype(getattr(ml_dtypes, skeleton["dtype"])))
    return value[()] if skeleton.get("scalar") else value
