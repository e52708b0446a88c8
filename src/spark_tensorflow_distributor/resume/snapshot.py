"""A checkpoint as one file: a nested structure of plain values and arrays, with facts about it.

The file is a zip archive, as NumPy's own ``.npz``: ``facts.json``, ``state.json`` and one ``.npy`` for each array.
Every part carries its checksum, the list of parts comes last, and nothing in it is ever unpickled: what is truncated,
damaged or not ours is known as such before any of it is used. ``numpy.load`` and any zip tool open it.
"""

import base64
import json
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from ..errors import CheckpointError

FORMAT = "spark_tensorflow_distributor checkpoint 1"
_FACTS, _STATE = "facts.json", "state.json"
_PLAIN = (type(None), bool, int, float, str)


def write(file: BinaryIO, facts: Mapping[str, Any], state: Any) -> None:
    """Write one checkpoint.

    Args:
        file: to be written from its present place on.
        facts: what can be said of it in JSON.
        state: None, truth values, numbers, texts, bytes, arrays, and lists, tuples and dicts of these. Whatever has a
            ``numpy()``, as TensorFlow's tensors and variables have, counts as its array.

    Raises:
        CheckpointError: the state holds something else.
        OSError: the file cannot be written.
    """
    arrays: list[np.ndarray] = []
    skeleton = _flatten(state, arrays, "state")
    # Stored, not compressed: weights hardly shrink, and the time counts.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_FACTS, json.dumps({**facts, "format": FORMAT}))
        archive.writestr(_STATE, json.dumps(skeleton))
        for number, array in enumerate(arrays):
            with archive.open(f"{number}.npy", "w", force_zip64=True) as part:
                np.lib.format.write_array(part, array, allow_pickle=False)


def check(state: Any) -> Any:
    """A copy of the state, of plain values and NumPy arrays.

    Raises:
        CheckpointError: it holds something that a checkpoint does not.
    """
    arrays: list[np.ndarray] = []
    skeleton = _flatten(state, arrays, "state")
    copies = [np.array(array) for array in arrays]
    return _rebuild(skeleton, copies.__getitem__)


def read_facts(file: BinaryIO) -> dict[str, Any]:
    """The facts alone.

    Raises:
        CheckpointError: it is no checkpoint, or a damaged one.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            facts: dict[str, Any] = json.loads(archive.read(_FACTS))
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, NotImplementedError) as error:
        raise CheckpointError(f"it is damaged, half-written or no checkpoint of this library: {error}") from error
    if facts.get("format") != FORMAT:
        raise CheckpointError(f"its format is {facts.get('format')!r}, and this version reads {FORMAT!r}")
    return facts


def read(file: BinaryIO) -> tuple[dict[str, Any], Any]:
    """Facts and state, every part of it checked.

    Raises:
        CheckpointError: it is no checkpoint, or a damaged one.
    """
    facts = read_facts(file)
    try:
        with zipfile.ZipFile(file) as archive:
            skeleton = json.loads(archive.read(_STATE))

            def array(number: int) -> np.ndarray:
                with archive.open(f"{number}.npy") as part:
                    value: np.ndarray = np.lib.format.read_array(part, allow_pickle=False)
                    part.read()  # up to the end, where the checksum is compared
                    return value

            return facts, _rebuild(skeleton, array)
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, EOFError, NotImplementedError) as error:
        raise CheckpointError(f"it is damaged: {error}") from error


def _flatten(value: Any, arrays: list[np.ndarray], where: str) -> Any:
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
        return {kind: [_flatten(each, arrays, f"{where}[{place}]") for place, each in enumerate(value)]}
    if hasattr(value, "numpy"):
        value = value.numpy()
    if isinstance(value, np.ndarray | np.generic):
        return _flatten_array(np.asarray(value), arrays, where, is_scalar=isinstance(value, np.generic))
    if isinstance(value, bytes):  # a text tensor's
        return {"bytes": base64.b64encode(value).decode()}
    raise CheckpointError(
        f"{where} is a {type(value).__name__}. A checkpoint holds numbers, texts, bytes, arrays, tensors, variables, "
        "and lists, tuples and dicts of these; of a model take get_weights(), of an optimizer its variables."
    )


def _flatten_array(array: np.ndarray, arrays: list[np.ndarray], where: str, *, is_scalar: bool) -> Any:
    if array.dtype.kind == "O":
        if array.size and not all(isinstance(each, bytes | str) for each in array.flat):
            raise CheckpointError(f"{where} is an array of Python objects, which a checkpoint does not hold.")
        texts = [each.encode() if isinstance(each, str) else each for each in array.flat]
        return {"texts": [base64.b64encode(each).decode() for each in texts], "shape": list(array.shape)}
    entry: dict[str, Any] = {"array": len(arrays)}
    if is_scalar:
        entry["scalar"] = True
    if array.dtype.kind == "V" or array.dtype.type.__module__ != "numpy":
        # bfloat16 and its like, which NumPy's own format does not know: the same bytes under another name.
        entry["dtype"] = array.dtype.name
        array = array.view(f"u{array.dtype.itemsize}")
    arrays.append(array)
    return entry


def _rebuild(skeleton: Any, array: Any) -> Any:
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
