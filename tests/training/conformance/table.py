"""The conformance table: cases by name, and what each one needs.

A case is a function of the Keras package, called within the strategy's scope. It builds a model, trains it, and returns
named arrays, which are compared with the arrays from one process at the same global batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

BATCH = 48
# Six full batches and one of 37 rows, which neither two nor three workers can divide equally.
ROWS = 325


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        group: ``data``, ``models``, ``optimizers``, ``compile``, ``calls`` or ``callbacks``.
        run: The function.
        packages: The Keras packages that have the feature.
        rtol: Relative tolerance against one process.
        atol: Absolute tolerance.
        since: The first release of Keras 3 on which the case computes the numbers of one process.
        alone: The function that one process runs for comparison; None for the case itself.
        unequal: Why the numbers cannot be those of one process; empty if they can.
    """

    group: str
    run: Callable[..., dict[str, Any]]
    packages: tuple[str, ...]
    rtol: float
    atol: float
    since: tuple[int, int]
    alone: Callable[..., dict[str, Any]] | None
    unequal: str = ""

    @property
    def name(self) -> str:
        return self.run.__name__

    def is_supported(self, package: str) -> bool:
        """Return whether the installed release of a package is recent enough."""
        return package != "keras" or tuple(map(int, metadata.version("keras").split(".")[:2])) >= self.since


CASES: dict[str, Case] = {}


def case(
    *,
    keras_3_only: bool = False,
    rtol: float = 2e-4,
    atol: float = 2e-5,
    since: tuple[int, int] = (3, 10),
    alone: Callable[..., dict[str, Any]] | None = None,
) -> Callable[[Callable[..., dict[str, Any]]], Callable[..., dict[str, Any]]]:
    """Add a function to the table."""

    def register(run: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        packages = ("keras",) if keras_3_only else ("keras", "tf_keras")
        assert run.__name__ not in CASES, run.__name__
        CASES[run.__name__] = Case(run.__module__.rpartition("_")[2], run, packages, rtol, atol, since, alone)
        return run

    return register


def digits(rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits: [rows, 64] float32 in 0..1, and [rows] int32."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.data[:rows] / 16).astype("float32"), data.target[:rows].astype("int32")


def dense(keras: Any, optimizer: Any = None, **compile_arguments: Any) -> Any:
    """Return a compiled classifier of two layers."""
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(12, activation="tanh"), keras.layers.Dense(10, activation="softmax")]
    )
    compile_arguments = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], **compile_arguments}
    model.compile(optimizer or keras.optimizers.SGD(0.2, momentum=0.9), **compile_arguments)
    return model


def dataset(*tensors: Any, batch: int = BATCH, **kwargs: Any) -> Any:
    """Return a ``tf.data`` dataset of global batches."""
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(tensors).batch(batch, **kwargs)


def fit(model: Any, x: Any, y: Any = None, *, epochs: int = 2, **kwargs: Any) -> Any:
    """Call ``model.fit`` silently, without shuffling, and with the table's batch size if Keras makes the batches."""
    if y is not None:
        kwargs = {"batch_size": BATCH, "shuffle": False, **kwargs}
    return model.fit(x, y, epochs=epochs, verbose=0, **kwargs)


def outcome(model: Any, history: Any = None, **values: Any) -> dict[str, np.ndarray]:
    """Return all weights (including the state of layers), the history and any other values as named arrays."""
    weights = {f"weight {i}": np.asarray(weight) for i, weight in enumerate(model.get_weights())}
    logs = {f"history {name}": np.asarray(value) for name, value in history.history.items()} if history else {}
    return {**weights, **logs, **{name: np.asarray(value) for name, value in values.items()}}


def wait_for_all() -> None:
    """Wait for all workers, so that the files of the chief exist."""
    import tensorflow as tf

    tf.distribute.get_strategy().reduce("SUM", tf.constant(1.0), axis=None)
