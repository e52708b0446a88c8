"""Chooses the folders of trainings below ``checkpointDir`` and ``logDir``."""

import contextlib
import hashlib
import itertools
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..data.frames import plan_text
from .fingerprint import fingerprint
from .params import RUNNER_ARGUMENTS

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_trainings = itertools.count()


@dataclass
class _Use:
    """What a folder is used for in this process."""

    rows: int
    is_running: bool


class CheckpointNames:
    """The names of checkpoint folders in this process, which keep different trainings apart."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uses: dict[str, list[_Use]] = {}

    @contextlib.contextmanager
    def hold(self, identity: str, rows: int) -> Iterator[str]:
        """Yield the name of a training's folder, which no other training uses for the duration of the context.

        Args:
            identity: The training's identity; see :func:`identity_of`.
            rows: Spark's hash of its rows in this session, which tells rows apart that have the same identity. They
                are numbered in the order of their trainings, so that the same program finds its folders again.
        """
        with self._lock:
            uses = self._uses.setdefault(identity, [])
            free = (number for number, use in enumerate(uses) if use.rows == rows and not use.is_running)
            number = next(free, len(uses))
            uses[number:] = uses[number:] or [_Use(rows, False)]
            use = uses[number]
            use.is_running = True
        try:
            yield f"{identity}-{number}" if number else identity
        finally:
            with self._lock:
                use.is_running = False


_names = CheckpointNames()


def identity_of(estimator: Any, dataset: "DataFrame") -> str:
    """Return a hash of what a training computes: the same in another driver, if the program and the rows are the same.

    It covers the estimator's Params, with the functions' code and the model's weights, but not the runner's arguments,
    with which a training may continue. Of the rows, it covers the schema, the files that they come from and the plan.

    Args:
        estimator: The estimator.
        dataset: The rows.
    """
    values = {
        param.name: estimator.getOrDefault(param)
        for param in estimator.params
        if estimator.isDefined(param) and param.name not in RUNNER_ARGUMENTS
    }
    text = " ".join(
        [
            type(estimator).__qualname__,
            fingerprint(values),
            dataset.schema.json(),
            *sorted(dataset.inputFiles()),
            plan_text(dataset),
        ]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextlib.contextmanager
def training_folders(estimator: Any, dataset: "DataFrame") -> Iterator[dict[str, str]]:
    """Yield a training's folders, as arguments of the runner; empty if neither Param is set.

    The trainings of a CrossValidator share these Params, and must neither resume each other's checkpoints nor write to
    the same files.

    Args:
        estimator: The estimator.
        dataset: The rows.
    """
    found = {}
    if (logs := estimator._value("logDir")) is not None:
        found["log_dir"] = os.path.join(logs, f"{estimator.uid}-{next(_trainings)}")
    checkpoints = estimator._value("checkpointDir")
    if checkpoints is None:
        yield found
        return
    with _names.hold(identity_of(estimator, dataset), dataset.semanticHash()) as name:
        yield {**found, "checkpoint_dir": f"{checkpoints.rstrip('/')}/{name}"}
