"""Runs a method of a model on one worker, without the others."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .keras_api import keras_of
from .private_names import EAGER_CONTEXT
from .random_state import global_seed, random_state, restore_random_state, use_seed
from .replica import ReplicaStrategy, replica_strategy
from .replica_step import alone, in_method

# The attribute of a model that holds its _FunctionsAlone.
_KEPT = "_spark_tensorflow_distributor_functions_alone"


@dataclass(frozen=True)
class _FunctionsAlone:
    """The functions that a model has compiled for calls alone; Keras does not look into it when it saves a model.

    Attributes:
        compiled: The result of :func:`_compiled` when the functions were made.
        functions: The functions, by the name of the model's attribute.
    """

    compiled: list[Any]
    functions: dict[str, Any]


@contextlib.contextmanager
def by_itself(model: Any) -> Iterator[None]:
    """Let this worker run a model's methods without the others, as one process would."""
    strategy = replica_strategy(model.distribute_strategy)
    assert strategy is not None
    with alone(), in_method(""), without_strategy(model, strategy), _functions_of_its_own(model):
        yield


@contextlib.contextmanager
def without_strategy(model: Any, strategy: ReplicaStrategy) -> Iterator[None]:
    """Enter the strategy's scope, and let a Keras 3 model use this strategy rather than a stored one.

    If a model stores a strategy, Keras builds the model before the first step, which consumes a batch and fails for
    models without a call method. Plain variables can be created in the first step, as in one process.
    """
    before = getattr(model, "_distribute_strategy", None)
    with strategy.scope():
        if keras_of(model) == "keras":
            model._distribute_strategy = None
        try:
            yield
        finally:
            if keras_of(model) == "keras":
                model._distribute_strategy = before


@contextlib.contextmanager
def _functions_of_its_own(model: Any) -> Iterator[None]:
    """Use separate compiled functions, not the ones that all workers call together."""
    names = ("test_function", "predict_function")
    before = {name: getattr(model, name, None) for name in names}
    kept: _FunctionsAlone | None = getattr(model, _KEPT, None)
    if kept is not None and any(a is not b for a, b in zip(kept.compiled, _compiled(model), strict=True)):
        kept = None  # its functions update the metrics of an earlier compile
    for name in names:
        setattr(model, name, None if kept is None else kept.functions.get(name))
    try:
        yield
    finally:
        functions = {name: getattr(model, name, None) for name in names}
        setattr(model, _KEPT, _FunctionsAlone(_compiled(model), functions))
        for name, function in before.items():
            setattr(model, name, function)


def _compiled(model: Any) -> list[Any]:
    """Return the objects that Keras 3 and tf_keras recreate in each ``compile``."""
    names = ("_loss_tracker", "_compile_metrics", "_compile_loss", "compiled_loss")
    return [vars(model).get(name) for name in names]  # in Keras 3, compiled_loss is a method


@contextlib.contextmanager
def same_randomness(model: Any) -> Iterator[None]:
    """Restore the random generators afterwards.

    While one worker computes alone, the generators of the others do not advance.
    """
    from .patches.random_numbers import restore_seeds, seeds_so_far

    state, seeds, context = random_state(), seeds_so_far(), EAGER_CONTEXT.load().context()
    operations: random.Random | None = getattr(context, "_rng", None)  # None if the program has set no seed
    operation_state = None if operations is None else operations.getstate()
    variables = [(variable, np.asarray(variable)) for variable in global_seed(model)]
    try:
        yield
    finally:
        restore_random_state(state)
        restore_seeds(seeds)
        if operations is not None and operation_state is not None:
            operations.setstate(operation_state)
        for variable, value in variables:
            variable.assign(value)
        if not variables and global_seed(model):  # created meanwhile
            use_seed(None)
