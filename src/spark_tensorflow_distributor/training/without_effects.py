"""Runs a step of a model without lasting effects: eagerly, and with all state restored afterwards."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from .calls_alone import same_randomness
from .keras_api import keras_of, optimizer_variables
from .replica import ReplicaStrategy
from .variable_sync import plain_variable


@contextlib.contextmanager
def eager(model: Any) -> Iterator[None]:
    """Run steps eagerly, in which compiled functions of the model and of the program are not involved.

    A function that the program has decorated with ``tf.function`` would otherwise remember a step without updates.
    """
    functions = {name: getattr(model, name) for name in ("train_function", "train_tf_function") if hasattr(model, name)}
    was_eager, all_were_eager = model.run_eagerly, tf.config.functions_run_eagerly()
    step, steps = model.train_step, getattr(model, "_steps_per_execution", None)
    is_keras_3, has_own = keras_of(model) == "keras", "train_step" in vars(model)

    @functools.wraps(step)
    def train_step(data: Any) -> Any:
        import keras

        # Keras 3's train_on_batch always passes three values; fit passes only those that are given.
        return step(keras.utils.pack_x_y_sample_weight(*data))

    executed: tuple[tf.Variable, int] | None = None
    try:
        model.train_function, model.run_eagerly = None, True
        tf.config.run_functions_eagerly(True)
        if is_keras_3:
            model.train_step = train_step
        elif isinstance(steps, tf.Variable):
            executed = steps, int(steps)
            steps.assign(1)
        yield
    finally:
        tf.config.run_functions_eagerly(all_were_eager)
        model.run_eagerly = was_eager
        if is_keras_3 and has_own:
            model.train_step = step
        elif is_keras_3:
            del model.train_step
        if executed is not None:
            executed[0].assign(executed[1])
        for name, function in functions.items():
            setattr(model, name, function)


@contextlib.contextmanager
def unchanged(model: Any, strategy: ReplicaStrategy) -> Iterator[None]:
    """Restore variables, metrics and random generators afterwards."""
    layers = list(model._flatten_layers())
    held: list[Any] = [value for layer in layers for value in getattr(layer, "__dict__", {}).values()]
    held = [value.state if isinstance(value, tf.random.Generator) else value for value in held]
    optimizers = [value for value in held if hasattr(value, "apply_gradients")]
    metrics = strategy.variables.partial_sums()
    variables = [*model.variables, *held, *metrics]
    for optimizer in (model.optimizer, *optimizers):
        variables += optimizer_variables(optimizer)
    plain = {id(each): each for each in map(plain_variable, variables) if isinstance(each, tf.Variable)}
    values = [(each, np.array(each.numpy())) for each in plain.values() if each.is_initialized()]
    with same_randomness(model), _same_draws(layers):
        try:
            yield
        finally:
            for variable, value in values:
                variable.assign(value)
            for variable in strategy.variables.partial_sums():
                if id(variable) not in plain:  # a metric's, created by the step
                    variable.assign(tf.zeros_like(variable))


@contextlib.contextmanager
def _same_draws(layers: Sequence[Any]) -> Iterator[None]:
    """Make tf_keras' layers draw the same numbers in each step.

    Normally, they use operations that keep a state in TensorFlow's runtime, which cannot be restored.
    """
    generators: list[Any] = [getattr(layer, "_random_generator", None) for layer in layers]
    before = [(each, each._rng_type, each._seed) for each in generators if hasattr(each, "_rng_type")]
    try:
        for number, (generator, _, _) in enumerate(before):
            generator._rng_type, generator._seed = generator.RNG_STATELESS, number
        yield
    finally:
        for generator, kind, seed in before:
            generator._rng_type, generator._seed = kind, seed
