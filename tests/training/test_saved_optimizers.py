"""Every optimizer that a model trains with continues where it was, whichever variables it trains."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from spark_tensorflow_distributor.resume.model_state import ModelState, describe

ROWS = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")


def net_of(package):
    layers = package.layers
    return package.Sequential([layers.Input((4,)), layers.Dense(3, activation="tanh"), layers.Dense(1)])


def of_parts(package, optimizer):
    """Each optimizer trains a part of the variables, in an order of its own."""
    model = net_of(package)
    model.compile(optimizer(0.1))
    model.second = {"rest": optimizer(0.2)}
    parts = [
        (model.optimizer, model.trainable_variables[3:1:-1]),
        (model.second["rest"], model.trainable_variables[:2]),
    ]
    return model, model, parts


def of_nested_model(package, optimizer):
    model = package.Sequential([package.layers.Input((4,)), net := net_of(package)])
    net.compile(optimizer(0.1))
    model.compile(None if package is keras else "sgd")
    return model, model, [(net.optimizer, net.trainable_variables)]


def of_frozen_layers(package, optimizer):
    """As in a GAN, a part of the model is not trainable, but has its own optimizer."""
    model = package.Sequential([package.layers.Input((4,)), net := net_of(package), package.layers.Dense(1)])
    variables = net.trainable_variables
    net.trainable = False
    model.compile(optimizer(0.1))
    model.second = optimizer(0.2)
    return model, model, [(model.optimizer, model.trainable_variables), (model.second, variables)]


def of_variables_elsewhere(package, optimizer):
    """The model does not know the variables."""
    model, net = net_of(package), net_of(package)
    model.compile(None if package is keras else "sgd")
    model.second = optimizer(0.1)
    return model, net, [(model.second, net.trainable_variables)]


class Wrapper(keras.optimizers.Optimizer):
    """Leaves the work to another optimizer."""

    def __init__(self, learning_rate):
        super().__init__(learning_rate)
        self.inner = keras.optimizers.Adam(learning_rate)

    def apply(self, grads, trainable_variables=None):
        if not self.built:
            self.build(trainable_variables)
        self.inner.apply(grads, trainable_variables)
        self.iterations.assign_add(1)


def train(net, parts, steps):
    for _ in range(steps):
        for optimizer, variables in parts:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((net(ROWS) - ROWS[:, :1]) ** 2)
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
    return [np.array(each) for each in net.get_weights()]


@pytest.mark.parametrize("make", [of_parts, of_nested_model, of_frozen_layers, of_variables_elsewhere])
@pytest.mark.parametrize(
    ("package", "optimizer"),
    [
        (keras, keras.optimizers.Adam),
        (keras, Wrapper),
        pytest.param(keras, lambda rate: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(rate)), id="scaled"),
        (tf_keras, tf_keras.optimizers.Adam),
        pytest.param(tf_keras, tf_keras.optimizers.legacy.Adam, id="legacy"),
    ],
)
def test_resumed_training_continues_with_the_state_of_all_optimizers(make, package, optimizer):
    model, net, parts = make(package, optimizer)
    train(net, parts, 2)
    state = ModelState(model, is_chief=True, warn=print)
    weights, _ = state.capture([state.local_part()])
    specs, optimizers, targets = describe(state.weights), state.capture_optimizers(), state.optimizer_targets()
    reached = net.get_weights()
    expected = train(net, parts, 3)

    model, net, parts = make(package, optimizer)
    resumed = ModelState(model, is_chief=True, warn=print)
    resumed.restore_weights(weights, specs, targets.get("optimizer"))
    resumed.restore_optimizers(optimizers, targets)
    net.set_weights(reached)
    for actual, wanted in zip(train(net, parts, 3), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)
