"""Keras' own steps are traced once, because their variables exist before; other steps create theirs as usual."""

import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

sys.path.append(str(Path(__file__).parent))

from in_process import on_replicas

from spark_tensorflow_distributor.training.early_variables import create_early

ROWS = 12
X = np.random.default_rng(0).normal(size=(ROWS, 4)).astype("float32")
LABELS = np.arange(ROWS) % 3
BATCH = tf.TensorSpec((None, 4)), tf.TensorSpec((None,), tf.int64)


def sequential():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])


def functional(wrap=lambda output: output, model_class=keras.Model):
    inputs = keras.Input((4,))
    return model_class(inputs, wrap(keras.layers.Dense(3, activation="softmax")(inputs)))


@pytest.mark.parametrize("make", [sequential, functional])
@pytest.mark.parametrize("optimizer", ["adam", "mixed precision", "moving averages"])
def test_a_step_is_traced_once_and_creates_the_variables_of_one_process(make, optimizer):
    def build():
        traces = []

        def loss(labels, predicted):
            traces.append(1)
            return keras.losses.sparse_categorical_crossentropy(labels, predicted)

        chosen = {
            "adam": keras.optimizers.Adam,
            "mixed precision": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(momentum=0.9)),
            "moving averages": lambda: keras.optimizers.Adam(use_ema=True, gradient_accumulation_steps=2),
        }[optimizer]()
        model = make()
        model.compile(chosen, loss, metrics=["accuracy"], weighted_metrics=["accuracy"])
        return model, traces

    def train(built):
        model, traces = built
        history = model.fit(X, LABELS, batch_size=4, epochs=2, shuffle=False, verbose=0, validation_data=(X, LABELS))
        return len(traces), [each.path for each in model.optimizer.variables], [*history.history]

    (single,) = on_replicas(0, build, train)
    assert single[0] == 3  # twice for training, once for validation
    for found in on_replicas(2, build, train):
        assert found[0] == 2
        # Keras numbers layers, also those of other tests.
        assert [path.count("/") for path in found[1]] == [path.count("/") for path in single[1]]
        assert [path.rpartition("_")[2] for path in found[1]] == [path.rpartition("_")[2] for path in single[1]]
        assert found[2] == single[2]


class OwnStep(keras.Model):
    def train_step(self, data):
        return super().train_step(data)


class Late(keras.layers.Layer):
    """Builds its inner layer when it is first called, which Keras does not do while a model is defined."""

    def __init__(self):
        super().__init__()
        self.inner = keras.layers.Dense(3)

    def build(self, shape):
        self.scale = self.add_weight(shape=(3,), initializer="ones")

    def call(self, inputs):
        return self.inner(inputs) * self.scale

    def compute_output_shape(self, shape):
        return (*shape[:-1], 3)


class Halving(keras.optimizers.SGD):
    def apply(self, grads, trainable_variables=None):
        return super().apply([each / 2 for each in grads], trainable_variables)


def late():
    inputs = keras.Input((4,))
    return keras.Model(inputs, Late()(inputs))


def scores():
    """The output's width is known only in the step."""
    inputs = keras.Input((None, 2))
    return keras.Model(inputs, keras.layers.Flatten()(keras.layers.Dense(1)(inputs)))


@pytest.mark.parametrize(
    ("make", "batch"),
    [
        (lambda: keras.Sequential([keras.layers.Dense(3)]), BATCH),  # not built
        (lambda: functional(lambda output: [output]), BATCH),
        (lambda: functional(lambda output: {"a": output}), BATCH),
        (lambda: functional(lambda output: [output, output]), BATCH),
        (lambda: functional(model_class=OwnStep), BATCH),
        (late, BATCH),
    ],
)
def test_what_another_step_creates_is_unknown(make, batch):
    model = make()
    model.compile("adam", "mse", metrics=["mae"])
    create_early(model, model.train_step, batch)
    assert not model.optimizer.built
    assert not model._compile_metrics.built


def test_the_users_optimizer_and_metrics_of_an_unknown_width_are_built_in_the_step():
    model = sequential()
    model.compile(keras.optimizers.LossScaleOptimizer(Halving()), "mse", metrics=["mae"])
    create_early(model, model.train_step, BATCH)
    assert (model.optimizer.built, model._compile_metrics.built) == (False, True)
    model = scores()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    create_early(model, model.train_step, (tf.TensorSpec((None, None, 2)), tf.TensorSpec((None, 1), tf.int64)))
    assert (model.optimizer.built, model._compile_metrics.built) == (True, False)


class Cell(keras.layers.Layer):
    """Has an output that is narrower than its state, which is what Keras takes for the output's width."""

    state_size = 5

    def build(self, shape):
        self.narrow = keras.layers.Dense(1)
        self.narrow.build((None, 5))
        self.built = True

    def call(self, inputs, states):
        return self.narrow(states[0]), states


class Narrow(keras.Operation):
    def call(self, inputs):
        return inputs[:, :1]

    def compute_output_spec(self, inputs):
        return keras.KerasTensor((None, 4))


def of_lambda():
    return functional(keras.layers.Lambda(lambda outputs: outputs[:, :1], output_shape=(4,)))


def of_cell():
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.RNN(Cell())(keras.layers.Reshape((2, 2))(inputs)))


def of_operation():
    return functional(Narrow())


@pytest.mark.parametrize("make", [of_lambda, of_cell, of_operation])
def test_a_width_that_the_user_declares_is_not_trusted(make):
    model = make()
    assert model.output.shape[-1] > 1
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
    create_early(model, model.train_step, BATCH)
    assert (model.optimizer.built, model._compile_metrics.built) == (True, False)


@pytest.mark.parametrize("make", [late, scores])
def test_a_model_that_is_known_only_in_the_step_trains_as_in_one_process(make):
    x = X if make is late else np.random.default_rng(0).normal(size=(ROWS, 3, 2)).astype("float32")

    def build():
        keras.utils.set_random_seed(1)
        model = make()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.1), loss, metrics=["accuracy"])
        return model

    def train(model):
        return model.fit(x, LABELS[:, None], batch_size=4, epochs=2, shuffle=False, verbose=0).history

    (single,) = on_replicas(0, build, train)
    for found in on_replicas(2, build, train):
        assert found.keys() == single.keys()
        for name, values in single.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-4)


def test_only_training_builds_the_optimizer_and_only_labels_the_metrics():
    model = sequential()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    create_early(model, model.predict_step, BATCH)
    create_early(model, model.test_step, BATCH[:1])
    assert not model._compile_metrics.built
    create_early(model, model.test_step, BATCH)
    assert (model._compile_metrics.built, model.optimizer.built) == (True, False)
    assert [each.name for each in model.metrics] == ["loss", "compile_metrics"]
    model.train_step = lambda data: {}
    create_early(model, model.train_step, BATCH)
    assert not model.optimizer.built
