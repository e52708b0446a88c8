"""Pickles the function's return value."""

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from ...formatting import mebibytes, one_line, sentence, type_name, with_article
from ...training.keras_api import keras_of
from ...training.keras_pickle import dump
from ..results import RescuedWeights

_PICKLE_HINT = "Return plain data (numbers, arrays, dicts of them) or save the object to storage inside the function."


class UnsendableResultError(Exception):
    """The result cannot be sent to the driver."""


def write_result(value: Any, file: BinaryIO, limit: int) -> int:
    """Pickle a value; return the size in bytes.

    If a value that contains models cannot be pickled, the models' weights are written instead.

    Args:
        value: The function's return value.
        file: The file to write to, positioned at its start.
        limit: Maximum size in bytes; 0 for none.

    Raises:
        UnsendableResultError: The value cannot be pickled or written, or is too large.
    """
    try:
        try:
            dump(value, file)
        except OSError:
            raise
        except BaseException as error:
            what, why = with_article(type_name(value)), sentence(one_line(error))
            message = f"The function returned {what}, which cannot be pickled: {why}"
            weights = _weights(value)
            if not weights:
                raise UnsendableResultError(f"{message} {_PICKLE_HINT}") from error
            file.seek(0)
            file.truncate()
            dump(RescuedWeights(message, weights), file)
        file.flush()
    except OSError as error:
        raise UnsendableResultError(
            f"The returned value could not be written to the executor's local directory: {sentence(error)} Free space "
            "there, or point spark.local.dir to a larger disk."
        ) from error
    size = file.tell()
    if limit and size > limit:
        raise UnsendableResultError(
            f"The function returned a value of {mebibytes(size)} (pickled), but spark.driver.maxResultSize is "
            f"{mebibytes(limit)}. Raise that setting, with spark.driver.memory at several times the size, or save the "
            "value to storage inside the function and return its path."
        )
    return size


def pickle_and_discard(value: Any) -> None:
    """Pickle this rank's return value, and discard the result.

    Under TensorFlow's MultiWorkerMirroredStrategy (several GPUs per task, or the program's own strategy), pickling a
    model on the chief reads variables that are synchronised on reading, such as BatchNorm's moving statistics. Such a
    read is a collective: every rank must take part, or the chief waits forever. Variables of a ReplicaStrategy do not
    need this.
    """
    if value is None:
        return
    with open(os.devnull, "wb") as nowhere, contextlib.suppress(Exception):  # the chief's error is the one to report
        dump(value, nowhere)


def _weights(value: Any) -> bytes:
    """Return an archive of the weights of the models in a value, by model and variable; b"" if there are none."""
    import numpy as np

    arrays: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # the error to report is that the value cannot be pickled
        for number, model in enumerate(_models(value)):
            for index, variable in enumerate(model.weights):
                name = getattr(variable, "path", variable.name)
                arrays[f"{number}_{getattr(model, 'name', '')}/{index:04d}_{name}"] = np.asarray(variable)
    if not arrays:
        return b""
    with io.BytesIO() as file:
        np.savez(file, **arrays)
        return file.getvalue()


def _models(value: Any) -> Iterator[Any]:
    if keras_of(value) and hasattr(value, "weights"):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _models(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _models(each)
