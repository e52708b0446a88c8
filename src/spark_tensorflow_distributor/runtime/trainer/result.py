"""Pickles the function's return value."""

import contextlib
import io
import os
import pickle
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

from ...formatting import keras_cause, mebibytes, sentence, type_name, with_article
from ...training.keras_api import keras_of
from ...training.keras_pickle import dump, has_complete_configs
from ..results import RescuedWeights

_PICKLE_HINT = "Return plain data (numbers, arrays, dicts of them) or save the object to storage inside the function."


class UnsendableResultError(Exception):
    """The result cannot be sent to the driver."""


def write_result(value: Any, file: BinaryIO, limit: int) -> int:
    """Pickle a value; return the size in bytes.

    If a value that contains models cannot be pickled, or not be loaded again because a layer's ``get_config`` is
    incomplete, the models' weights are written instead.

    Args:
        value: The function's return value.
        file: The file to write to and read from, positioned at its start.
        limit: Maximum size in bytes; 0 for none.

    Raises:
        UnsendableResultError: The value cannot be pickled, loaded again or written, or is too large.
    """
    fault = "pickled"
    try:
        try:
            dump(value, file)
            fault = "loaded again"
            _check_loading(value, file)
        except OSError:
            raise
        except BaseException as error:
            what, why = with_article(type_name(value)), sentence(keras_cause(error))
            message = f"The function returned {what}, which cannot be {fault}: {why}"
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


def _check_loading(value: Any, file: BinaryIO) -> None:
    """Load a pickled value, and raise the error if that fails; skip this if its models certainly can be loaded.

    This takes place in another thread, whose variables belong to no strategy: other workers do not load the value. For
    the same reason, models of TensorFlow's own strategies are not checked: rescuing their weights needs all workers.
    """
    models = [each for each in _models(value) if _is_of_this_worker(getattr(each, "distribute_strategy", None))]

    def check() -> None:
        if not all(map(has_complete_configs, models)):
            file.seek(0)
            pickle.load(file)  # noqa: S301  # written by this function's caller

    if models:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(check).result()
        file.seek(0, os.SEEK_END)


def _is_of_this_worker(strategy: Any) -> bool:
    """Return whether a strategy's variables can be read without the other workers."""
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return True
    from ...training.replica import replica_strategy  # a process that has such a strategy has TensorFlow

    return replica_strategy(strategy) is not None


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
