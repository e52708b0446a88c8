"""A model's optimizers other than the one that it was compiled with, such as the two of a GAN."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

from ..errors import CheckpointError
from ..training.keras_api import keras_packages, optimizer_types, optimizer_variables
from ..training.keras_internals import when_built
from .held_objects import held_objects
from .resume_point import OptimizerStates

# Assigns values to the variables of an optimizer.
Assign: TypeAlias = Callable[[Any, Sequence[np.ndarray]], None]


def user_optimizers(model: Any) -> dict[str, Any]:
    """Return the optimizers that a model, its layers and its optimizers hold, without ``model.optimizer``.

    Optimizers whose variables another one lists as its own are not among them, such as that within Keras'
    ``LossScaleOptimizer``.

    Args:
        model: A model of Keras 3 or tf_keras.

    Returns:
        The optimizers by expression, such as ``generator_optimizer``, ``optimizers[0]`` or ``net.optimizer``, in the
        same order in every process.
    """
    compiled = getattr(model, "optimizer", None)
    known = {id(each) for each in optimizer_variables(compiled)}
    types = optimizer_types()
    layers = tuple(package.layers.Layer for package in keras_packages())
    found: dict[str, Any] = {}
    for path, each, _ in held_objects(model, types, (*types, *layers)):
        variables = {id(variable) for variable in optimizer_variables(each)}
        if each is not compiled and not (variables and variables <= known):
            known |= variables
            found[path] = each
    return found


def restore(
    optimizers: Mapping[str, Any],
    saved: OptimizerStates,
    assign: Assign,
    build: Callable[[str, Any], None],
    *,
    is_old: bool = False,
) -> None:
    """Restore the state of optimizers, now or as soon as their first step has created their variables.

    Args:
        optimizers: The result of :func:`user_optimizers`.
        saved: The saved state of each optimizer.
        assign: Assigns values to an optimizer's variables.
        build: Creates the variables of the optimizer with this name, if it is known for which variables of the model.
        is_old: Whether the checkpoint may be from a version that did not find all optimizers.

    Raises:
        CheckpointError: If the state belongs to other optimizers.
    """
    if saved.keys() - optimizers.keys() or (optimizers.keys() != saved.keys() and not is_old):
        raise CheckpointError(
            f"It belongs to another model: it holds the state of the optimizers {_names(saved)}, "
            f"but this model has {_names(optimizers)}."
        )
    for name, values in saved.items():
        optimizer = optimizers[name]
        if len(optimizer_variables(optimizer)) < len(values):
            build(name, optimizer)
        if len(optimizer_variables(optimizer)) < len(values):
            _restore_when_built(optimizer, values, assign)
        else:
            _check(name, optimizer, values)
            assign(optimizer, values)


def _restore_when_built(optimizer: Any, values: Sequence[np.ndarray], assign: Assign) -> None:
    def restore_now() -> None:
        _check(type(optimizer).__name__, optimizer, values)
        with tf.init_scope():  # the first step may still be traced, but the variables exist already
            assign(optimizer, values)

    when_built(optimizer, restore_now)


def _check(name: str, optimizer: Any, values: Sequence[np.ndarray]) -> None:
    present = [tuple(variable.shape) for variable in optimizer_variables(optimizer)]
    if present != [value.shape for value in values]:
        raise CheckpointError(
            f"It belongs to another model: it holds {len(values)} variables of the optimizer {name}, which has "
            f"{len(present)} variables of other shapes."
        )


def _names(optimizers: Mapping[str, Any]) -> str:
    return ", ".join(optimizers) or "none"
