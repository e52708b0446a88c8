"""Which gradients of a step are weighted already, and which dimensions count rows, whatever the program does."""

import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

sys.path.append(str(Path(__file__).parent))

from in_process import on_replicas

ROWS = 24
X = np.random.default_rng(0).normal(size=(ROWS, 12)).astype("float32")
Y = np.sin(X[:, :1]) + 0.5 * X[:, 1:2]


class Wrapper(keras.optimizers.Optimizer):
    """Passes gradients on, as optimizers that look ahead or average weights do."""

    def __init__(self, inner):
        super().__init__(learning_rate=0.1)
        self.inner = inner

    def build(self, variables):
        super().build(variables)
        self.inner.build(variables)

    def apply(self, grads, trainable_variables=None):
        self.inner.apply(grads, trainable_variables)
        self.iterations.assign_add(1)


class Accumulating(Wrapper):
    """Passes on a variable that accumulates gradients."""

    def build(self, variables):
        super().build(variables)
        self.sums = [tf.Variable(tf.zeros(each.shape)) for each in variables]

    def apply(self, grads, trainable_variables=None):
        for total, each in zip(self.sums, grads, strict=True):
            total.assign_add(each)
        self.inner.apply([each * 0.5 for each in self.sums], trainable_variables)
        self.iterations.assign_add(1)


def two_layers():
    return keras.Sequential([keras.Input((12,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)])


def wrapped_optimizer(eager):
    model = two_layers()
    model.compile(Wrapper(keras.optimizers.SGD(0.1)), "mse", run_eagerly=eager)
    return model


def accumulating_optimizer(eager):
    model = two_layers()
    model.compile(Accumulating(keras.optimizers.SGD(0.05)), "mse", run_eagerly=eager)
    model.optimizer.build(model.trainable_variables)
    return model


class Divided(keras.Model):
    """Trains its layers with an optimizer each."""

    def __init__(self, scales):
        super().__init__()
        self.first, self.second = keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)
        self.other, self.scales = keras.optimizers.SGD(0.1), scales

    def call(self, inputs):
        return self.second(self.first(inputs))

    def train_step(self, data):
        inputs, labels = data
        with tf.GradientTape(persistent=True) as tape:
            loss = tf.reduce_mean((self(inputs, training=True) - labels) ** 2)
            scaled = self.optimizer.scale_loss(loss)
        first, second = self.first.trainable_variables, self.second.trainable_variables
        if self.scales == "both":
            gradients = tape.gradient(scaled, first + second)
            clipped = [tf.clip_by_value(each, -0.5, 0.5) for each in gradients]
            self.optimizer.apply(gradients[:2], first)
            self.other.apply(clipped[2:], second)
        elif self.scales == "one":
            of_first, of_second = tape.gradient(scaled, first), tape.gradient(loss, second)
            self.other.apply(of_second, second)
            self.optimizer.apply(of_first, first)
        else:  # the same optimizer twice
            gradients = tape.gradient(scaled, first + second)
            self.optimizer.build(first + second)
            self.optimizer.apply(gradients[:2], first)
            self.optimizer.apply(gradients[2:], second)
        return {"loss": loss}


def divided(scales):
    def make(eager):
        model = Divided(scales)
        model.build((None, 12))
        model.compile(keras.optimizers.SGD(0.1), run_eagerly=eager)
        return model

    return make


def histories(build, data, count, epochs=3):
    def train(model):
        return model.fit(data(), epochs=epochs, shuffle=False, verbose=0).history

    return on_replicas(count, build, train)


def check_same(build, data, counts=(2,)):
    (single,) = histories(build, data, 0)
    for count in counts:
        for found in histories(build, data, count):
            assert found.keys() == single.keys()
            for name, values in single.items():
                np.testing.assert_allclose(found[name], values, rtol=2e-4, err_msg=name)


def batches(size, *, is_static=False):
    return lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(size, drop_remainder=is_static)


@pytest.mark.parametrize("eager", [False, True], ids=["graph", "eager"])
@pytest.mark.parametrize(
    "make",
    [wrapped_optimizer, accumulating_optimizer, divided("both"), divided("one"), divided("twice")],
    ids=["wrapped", "accumulating", "both", "one", "twice"],
)
def test_gradients_are_weighted_once_whichever_optimizer_applies_them(make, eager):
    def build():
        keras.utils.set_random_seed(1)
        return make(eager)

    check_same(build, batches(10))


class DroppedWeights(keras.layers.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 5), name="kernel")
        self.drop = keras.layers.Dropout(0.3, seed=3)

    def call(self, inputs, training=None):
        return inputs @ self.drop(self.kernel, training=training)


class StochasticDepth(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(4)

    def call(self, inputs, training=None):
        shape = (keras.ops.shape(inputs)[0], 1)
        return keras.random.dropout(inputs, 0.4, noise_shape=shape, seed=self.seeds) if training else inputs


class Tiled(keras.layers.Layer):
    """Drops units of queries that are repeated for each row."""

    def build(self, shape):
        self.queries = self.add_weight(shape=(1, 5), name="queries")
        self.drop = keras.layers.Dropout(0.4, seed=7)

    def call(self, inputs, training=None):
        queries = keras.ops.tile(self.queries, (keras.ops.shape(inputs)[0], 1))
        return keras.ops.concatenate([inputs, self.drop(queries, training=training)], axis=-1)


@pytest.mark.parametrize("size", [12, 2])  # as many rows per worker as the kernel has, divided; and one
@pytest.mark.parametrize("layer", [DroppedWeights, StochasticDepth, Tiled, lambda: keras.layers.Dropout(0.3, seed=5)])
def test_masks_of_batches_of_a_known_size(layer, size):
    def build():
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((12,)), layer(), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.01), "mse")
        return model

    check_same(build, batches(size, is_static=True))


class Tables(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.table = self.add_weight(shape=(24, 2), name="table")

    def call(self, inputs):
        return self.dense(inputs), self.table * 2.0


def test_a_table_that_is_predicted_with_batches_of_a_known_size_comes_once():
    data = tf.data.Dataset.from_tensor_slices(X).batch(12, drop_remainder=True)
    (single,) = on_replicas(0, Tables, lambda model: [each.shape for each in model.predict(data, verbose=0)])
    for found in on_replicas(2, Tables, lambda model: [each.shape for each in model.predict(data, verbose=0)]):
        assert found == single == [(24, 1), (48, 2)]


class Together(keras.layers.Layer):
    """Computes with the rows of the whole batch, as a contrastive loss does."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, inputs):
        own = self.dense(inputs)
        replica = tf.distribute.get_replica_context()  # None while the model is built
        every = own if replica is None else replica.all_gather(own, axis=0)
        return own - tf.reduce_mean(every**2, axis=0)


def test_a_worker_without_rows_adds_none_to_what_is_gathered():
    def build():
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((12,)), Together(), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.05), "mse")
        return model

    def train(model):
        strategy = model.distribute_strategy
        if hasattr(strategy, "collectives"):  # the first worker has all rows but one
            rows = [slice(0, 4), slice(4, 5)][strategy.collectives.rank]
            options = tf.data.Options()
            options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
            data = tf.data.Dataset.from_tensor_slices((X[rows], Y[rows])).batch(4).with_options(options)
        else:  # two workers take two rows each, and the second one runs out
            order = [0, 1, 4, 2, 3]
            data = tf.data.Dataset.from_generator(
                lambda: iter([(X[order[:3]], Y[order[:3]]), (X[order[3:]], Y[order[3:]])]),
                output_signature=(tf.TensorSpec((None, 12)), tf.TensorSpec((None, 1))),
            )
        model.fit(data, epochs=2, verbose=0)
        return model.get_weights()

    (single,) = on_replicas(0, build, train)
    for found in on_replicas(2, build, train):
        for value, expected in zip(found, single, strict=True):
            np.testing.assert_allclose(value, expected, rtol=2e-4, atol=1e-6)
