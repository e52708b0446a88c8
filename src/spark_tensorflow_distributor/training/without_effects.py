"""Runs a step of a model without lasting effects: eagerly, and with all state restored afterwards."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from .calls_alone import same_randomness
from .keras_api import keras_of
from .keras_internals import layers_of
from .replica import ReplicaStrategy
from .variable_sync import plain_variable


@contextlib.contextmanager
def eager(model: Any) -> Iterator[None]:
    """Run steps eagerly, without the compiled functions of the model and of the program.

    A function that the program has decorated with ``tf.function`` would otherwise remember a step without updates.
    """
    names = ("train_function", "train_tf_function", "_run_eagerly", "run_eagerly")
    before = {name: vars(model)[name] for name in names if name in vars(model)}
    all_were_eager, steps = tf.config.functions_run_eagerly(), getattr(model, "_steps_per_execution", None)
    step, user_step = model.train_step, vars(model).get("train_step")
    executed = int(steps) if isinstance(steps, tf.Variable) else None  # of tf_keras

    @functools.wraps(step)
    def train_step(data: Any) -> Any:
        # fit passes x alone, or a tuple of the values that are given; train_on_batch always a tuple.
        return step(sys.modules[keras_of(model)].utils.pack_x_y_sample_weight(*data))

    try:
        model.train_function, model.run_eagerly = None, True
        model.train_step = train_step
        tf.config.run_functions_eagerly(True)
        if executed is not None:
            steps.assign(1)  # type: ignore[union-attr]
        yield
    finally:
        if executed is not None:
            steps.assign(executed)  # type: ignore[union-attr]
        tf.config.run_functions_eagerly(all_were_eager)
        del model.train_step
        if user_step is not None:
            model.train_step = user_step
        for name, value in before.items():
            setattr(model, name, value)


@contextlib.contextmanager
def unchanged(model: Any, strategy: ReplicaStrategy) -> Iterator[None]:
    """Restore variables, metrics and random generators afterwards."""
    layers = layers_of(model)
    held = [value for each in (*layers, *_losses(model)) for value in _held(each)]
    variables = [*model.variables, *held, *strategy.variables.partial_sums()]
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


def _losses(model: Any) -> list[Any]:
    return [each for each in tf.nest.flatten(getattr(model, "loss", None)) if hasattr(each, "__dict__")]


def _held(owner: Any) -> Iterator[Any]:
    """Yield an object's attributes, and the items of those that are lists or dicts; for generators, their state."""
    for attribute in list(getattr(owner, "__dict__", {}).values()):
        values = attribute.values() if isinstance(attribute, dict) else attribute
        for value in list(values) if isinstance(attribute, list | tuple | dict) else [attribute]:
            yield value.state if isinstance(value, tf.random.Generator) else value


@contextlib.contextmanager
def _same_draws(layers: Sequence[Any]) -> Iterator[None]:
    """Make tf_keras' layers draw the same numbers in each step.

    Normally, they use operations that keep a state in TensorFlow's runtime, which cannot be restored.
    """
    generators: list[Any] = [getattr(layer, "_random_generator", None) for layer in layers]
    names = ("_rng_type", "_seed", "_built", "_generator")
    before = [
        (each, {name: getattr(each, name) for name in names if hasattr(each, name)})
        for each in generators
        if hasattr(each, "_rng_type")
    ]
    try:
        for number, (generator, _) in enumerate(before):
            generator._rng_type, generator._seed = generator.RNG_STATELESS, number
        yield
    finally:
        for generator, state in before:
            for name, value in state.items():
                setattr(generator, name, value)
