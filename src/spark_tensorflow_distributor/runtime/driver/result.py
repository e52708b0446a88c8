"""Loads a run's result on the driver; what cannot be loaded is kept."""

import pickle
import tempfile
from collections.abc import Sequence
from typing import Any

from ...errors import ResultNotLoadedError
from ...formatting import keras_cause, sentence
from ..results import RescuedWeights


def load_result(chunks: Sequence[bytes]) -> Any:
    """Return the value that rank 0 has pickled.

    Args:
        chunks: The pickled value, in chunks; empty for None.

    Raises:
        ResultNotLoadedError: The driver cannot load it, or rank 0 could not pickle it. The error keeps the bytes.
    """
    if not chunks:
        return None
    data = b"".join(chunks)
    try:
        # From a worker that has proved that it knows the secret; see docs/security.md.
        value = pickle.loads(data)  # noqa: S301
    except Exception as error:
        path = _kept(data, ".pickle")
        raise ResultNotLoadedError(
            f"The function returned a value that cannot be loaded on the driver: {sentence(keras_cause(error))} It is "
            f"kept {_where(path)}. The driver needs the packages that the value's classes come from, "
            "in the executors' versions. Once it has them, pickle.load() of the file returns the value.",
            data,
            path,
        ) from error
    if isinstance(value, RescuedWeights):
        path = _kept(value.data, ".npz")
        raise ResultNotLoadedError(
            f"{value.message} The weights of its models are kept {_where(path)}: build the "
            "model again, and give it the arrays of numpy.load() in their order with model.set_weights(). The __init__ "
            "of a custom layer or model must accept **kwargs for its base class, and its get_config() must return the "
            "other arguments.",
            value.data,
            path,
        )
    return value


def _kept(data: bytes, suffix: str) -> str:
    """Write the data to a new file; return its path, or "" if that is not possible."""
    try:
        with tempfile.NamedTemporaryFile(prefix="spark-tensorflow-result-", suffix=suffix, delete=False) as file:
            file.write(data)
    except OSError:
        return ""  # the error still has the data
    return file.name


def _where(path: str) -> str:
    return f"in the file {path} and in this error's .data" if path else "in this error's .data"
