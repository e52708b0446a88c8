"""The variables that a model or its callbacks hold, but Keras does not list.

Examples are a ``tf.Variable`` in an attribute of a model of Keras 3, the learning rate of an optimizer of tf_keras, and
the weights of another model in a callback.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

from ..training.keras_api import keras_of, keras_packages, optimizer_types
from ..training.variable_sync import is_numeric, plain_variable
from .callback_state import Callback
from .held_objects import Held, held_objects


def held_variables(model: Any, callbacks: Sequence[Callback], known: Iterable[Any]) -> dict[str, tf.Variable]:
    """Return the variables that a model and its callbacks hold, without the known ones.

    Those in layers, optimizers, metrics and random generators are among them.

    Args:
        model: A model of Keras 3 or tf_keras.
        callbacks: The callbacks of a ``fit``.
        known: The variables that are saved as those of the model, its metrics and its optimizers.

    Returns:
        The variables by expression, such as ``model.seen`` or ``Teacher[0].net.kernel``.
    """
    packages = keras_packages()
    wanted = (tf.Variable, *(package.Variable for package in packages if hasattr(package, "Variable")))
    seen = {id(plain_variable(each)) for each in known}
    found: dict[str, tf.Variable] = {}
    numbers: Counter[str] = Counter()
    for root in (model, *callbacks):
        kind, path = type(root).__name__, "model"
        if root is not model:
            path = f"{kind}[{numbers[kind]}]"
            numbers[kind] += 1
        for each in held_objects(root, wanted, _opened(packages), [] if root is model else [model]):
            variable = plain_variable(each.value)
            is_state = isinstance(variable, tf.Variable) and is_numeric(variable) and not _is_of_tf_keras(each)
            if is_state and id(variable) not in seen:
                seen.add(id(variable))
                found[f"{path}.{each.path}"] = variable
    return found


def _opened(packages: Sequence[Any]) -> tuple[type, ...]:
    types: list[type] = [tf.random.Generator, *optimizer_types()]
    for package in packages:
        types += [package.layers.Layer, package.metrics.Metric]
        if hasattr(package, "random"):  # Keras 3
            types.append(package.random.SeedGenerator)
    return tuple(types)


def _is_of_tf_keras(held: Held) -> bool:
    """Return whether a variable is one of those with which tf_keras counts the steps of ``fit``."""
    is_private = held.path.rpartition(".")[2].startswith("_")
    return is_private and hasattr(held.owner, "fit") and keras_of(held.owner) == "tf_keras"
