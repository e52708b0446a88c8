"""A model's optimizers other than the one that it was compiled with, such as the two of a GAN."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ..errors import CheckpointError
from ..training.keras_api import keras_packages, optimizer_variables
from .resume_point import OptimizerStates


def user_optimizers(model: Any) -> dict[str, Any]:
    """Return the optimizers in a model's attributes, lists, tuples and dicts, without ``model.optimizer``.

    Args:
        model: A model of Keras 3 or tf_keras.

    Returns:
        The optimizers by expression, such as ``generator_optimizer`` or ``optimizers[0]``, in the same order in every
        process.
    """
    kinds = tuple(package.optimizers.Optimizer for package in keras_packages())
    found: dict[str, Any] = {}
    known = {id(getattr(model, "optimizer", None))}
    for name, value in sorted(vars(model).items()):
        for path, each in _leaves(name, value):
            if isinstance(each, kinds) and id(each) not in known:
                known.add(id(each))
                found[path] = each
    return found


def restore(
    optimizers: Mapping[str, Any], saved: OptimizerStates, assign: Callable[[Any, Sequence[np.ndarray]], None]
) -> None:
    """Restore the state of optimizers, now or as soon as their first step has created their variables.

    Args:
        optimizers: The result of :func:`user_optimizers`.
        saved: The saved state of each optimizer.
        assign: Assigns values to an optimizer's variables.

    Raises:
        CheckpointError: If the state belongs to other optimizers.
    """
    if optimizers.keys() != saved.keys():
        raise CheckpointError(
            f"It belongs to another model: it holds the state of the optimizers {_names(saved)}, "
            f"but this model has {_names(optimizers)}."
        )
    for name, optimizer in optimizers.items():
        if len(optimizer_variables(optimizer)) < len(saved[name]):
            _restore_when_built(optimizer, saved[name], assign)
        else:
            _check(name, optimizer, saved[name])
            assign(optimizer, saved[name])


def _restore_when_built(
    optimizer: Any, values: Sequence[np.ndarray], assign: Callable[[Any, Sequence[np.ndarray]], None]
) -> None:
    # This attribute of the object hides the class's method until it is called once.
    method = optimizer.build

    def build(*args: Any, **kwargs: Any) -> Any:
        del optimizer.build
        result = method(*args, **kwargs)
        _check(type(optimizer).__name__, optimizer, values)
        with tf.init_scope():  # the first step may still be traced, but the variables exist already
            assign(optimizer, values)
        return result

    optimizer.build = build


def _check(name: str, optimizer: Any, values: Sequence[np.ndarray]) -> None:
    present = [tuple(variable.shape) for variable in optimizer_variables(optimizer)]
    if present != [value.shape for value in values]:
        raise CheckpointError(
            f"It belongs to another model: it holds {len(values)} variables of the optimizer {name}, which has "
            f"{len(present)} variables of other shapes."
        )


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(f"{path}[{key!r}]", each)
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _leaves(f"{path}[{index}]", each)
    else:
        yield path, value


def _names(optimizers: Mapping[str, Any]) -> str:
    return ", ".join(optimizers) or "none"
