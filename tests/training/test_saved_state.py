"""Optimizers, and variables that Keras does not list, continue where they were."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from spark_tensorflow_distributor import CheckpointError
from spark_tensorflow_distributor.resume.model_state import ModelState
from spark_tensorflow_distributor.resume.variable_specs import describe

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


def of_unlisted_variables(package, optimizer):
    """Keras 3 does not list variables of TensorFlow, but its optimizers train them."""
    model = net_of(package)
    model.factors = [tf.Variable(1.0), tf.Variable([2.0])]
    model.compile(optimizer(0.1))

    def net(rows):
        return model(rows) * model.factors[0] * model.factors[1]

    return model, net, [(model.optimizer, [*model.factors, *model.trainable_variables[:1]])]


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
    return [variable.numpy().copy() for _, variables in parts for variable in variables]


def saved(model, callbacks=()):
    state = ModelState(model, is_chief=True, warn=print)
    weights, _ = state.capture([state.local_part()])
    (optimizers, targets), (held, _) = state.capture_optimizers(), state.capture_held(callbacks)
    return weights, describe(state.weights), optimizers, targets, held


def restore(model, state, callbacks=(), warn=print):
    weights, specs, optimizers, targets, held = state
    resumed = ModelState(model, is_chief=True, warn=warn)
    resumed.restore_weights(weights, specs, targets.get("optimizer"))
    resumed.restore_optimizers(optimizers, targets)
    resumed.restore_held(held, callbacks, is_same_size=True)


@pytest.mark.parametrize(
    "make", [of_parts, of_nested_model, of_frozen_layers, of_variables_elsewhere, of_unlisted_variables]
)
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
    reached, state = train(net, parts, 2), saved(model)
    expected = train(net, parts, 3)

    model, net, parts = make(package, optimizer)
    restore(model, state)
    for variable, value in zip([each for _, variables in parts for each in variables], reached, strict=True):
        if make is of_variables_elsewhere:
            variable.assign(value)
        np.testing.assert_array_equal(variable.numpy(), value)
    for actual, wanted in zip(train(net, parts, 3), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)


class Teacher(keras.callbacks.Callback):
    def __init__(self, package):
        super().__init__()
        self.net, self.counts = net_of(package), {"a": tf.Variable(0), "b": [tf.Variable([0.0, 0.0])]}
        self.mean = package.metrics.Mean()
        self.random = tf.random.Generator.from_seed(1)

    def advance(self):
        self.random.normal([3])
        self.mean.update_state(3.0)
        self.counts["a"].assign_add(1)
        self.counts["b"][0].assign_add([1.0, 2.0])
        self.net.set_weights([each + 1 for each in self.net.get_weights()])


@pytest.mark.parametrize("package", [keras, tf_keras])
def test_variables_that_keras_does_not_list(package):
    def make():
        model = net_of(package)
        model.seen = tf.Variable(0.0, trainable=False)
        model.layers[0].seen = tf.Variable(0.0, trainable=False)
        model.compile("sgd", "mse")
        callbacks = [Teacher(package), keras.callbacks.EarlyStopping(), Teacher(package)]
        for each in callbacks:
            each.set_model(model)
        return model, callbacks

    model, callbacks = make()
    unchanged = saved(model, callbacks)
    model.seen.assign(1.0)
    model.layers[0].seen.assign(2.0)
    model.optimizer.learning_rate.assign(0.25)
    callbacks[0].advance()
    callbacks[2].advance()
    callbacks[2].advance()
    state = saved(model, callbacks)
    assert not any("counter" in path for path in state[-1])

    model, callbacks = make()
    assert saved(model, callbacks)[-1].keys() == state[-1].keys()
    restore(model, state, callbacks)
    assert (float(model.seen), float(model.layers[0].seen), float(model.optimizer.learning_rate)) == (1.0, 2.0, 0.25)
    assert [int(callbacks[index].counts["a"]) for index in (0, 2)] == [1, 2]
    restored = saved(model, callbacks)[-1]
    for path, value in state[-1].items():
        np.testing.assert_array_equal(restored[path], value, err_msg=path)
        if path.startswith("Teacher"):
            assert not np.array_equal(unchanged[-1][path], value), path


def test_a_variable_that_does_not_exist_yet_is_named_in_a_warning():
    model, warnings = net_of(keras), []
    model.seen = tf.Variable(1.0)
    state = saved(model)
    restore(net_of(keras), state, warn=warnings.append)
    assert ["model.seen" in each for each in warnings] == [True]
    other = net_of(keras)
    other.seen = tf.Variable([1.0, 2.0])
    with pytest.raises(CheckpointError, match=r"holds values of shape \(\) and type float32 for model\.seen"):
        restore(other, state)


def test_a_variable_of_unknown_size_is_saved():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.queue = tf.Variable([1.0, 2.0, 3.0], shape=[None])
    state = saved(model)
    model.queue.assign([0.0, 0.0])
    restore(model, state)
    assert model.queue.numpy().tolist() == [1.0, 2.0, 3.0]
