"""A metric covers all workers' rows, wherever it is created."""

import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

sys.path.append(str(Path(__file__).parent))

from in_process import on_replicas

X = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
Y = X[:, :1]


class Total(keras.metrics.Metric):
    """Has a variable that Keras does not know."""

    def __init__(self, name="total", **kwargs):
        super().__init__(name=name, **kwargs)
        self.total = tf.Variable(0.0)

    def update_state(self, labels, predicted, sample_weight=None):
        self.total.assign_add(tf.reduce_sum(tf.abs(labels)))

    def result(self):
        return self.total.read_value()

    def reset_state(self):
        self.total.assign(0.0)


class Excess(keras.metrics.Metric):
    """A smoothed mean, less a threshold: all of its sums start from values other than 0."""

    def __init__(self, keeps):
        super().__init__(name="excess")
        self.keeps = keeps
        self.total = self.add_weight(shape=(), initializer="ones", name="total")
        self.count = self.add_weight(shape=(), initializer="ones", name="count")
        self.threshold = self.add_weight(shape=(), initializer=keras.initializers.Constant(0.5), name="threshold")

    def update_state(self, labels, predicted, sample_weight=None):
        self.total.assign_add(tf.reduce_sum(tf.abs(labels)))
        self.count.assign_add(tf.cast(tf.shape(labels)[0], tf.float32))

    def result(self):
        return self.total / self.count - self.threshold

    def reset_state(self):
        if self.keeps:
            self.total.assign(1.0)
            self.count.assign(1.0)
        else:
            super().reset_state()


@pytest.mark.parametrize("keeps", [True, False])
def test_sums_may_start_from_other_values_than_zero(keeps):
    def build():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", metrics=[Excess(keeps)])
        return model

    def train(model):
        return model.fit(X, Y, batch_size=5, epochs=2, shuffle=False, verbose=0).history["excess"]

    (single,) = on_replicas(0, build, train)
    for found in on_replicas(3, build, train):
        np.testing.assert_allclose(found, single, rtol=1e-5)


class Seen(keras.metrics.Metric):
    """Counts the rows of all epochs, from 1."""

    def __init__(self):
        super().__init__(name="seen")
        self.count = self.add_weight(shape=(), initializer="ones", name="count")

    def update_state(self, labels, predicted, sample_weight=None):
        self.count.assign_add(tf.cast(tf.shape(labels)[0], tf.float32))

    def result(self):
        return self.count.value

    def reset_state(self):
        pass


def test_a_sum_that_is_not_reset_goes_on():
    def build():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", metrics=[Seen()])
        return model

    def train(model):
        return model.fit(X, Y, batch_size=5, epochs=3, shuffle=False, verbose=0).history["seen"]

    assert on_replicas(3, build, train) == [[13.0, 25.0, 37.0]] * 3


@pytest.mark.parametrize("outputs", [1, 2])  # with two, the step creates the metrics
@pytest.mark.parametrize("given", [Total, lambda: Total], ids=["metrics", "classes"])
def test_a_metric_of_plain_variables_may_be_passed_as_a_class(given, outputs):
    def build():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((4,))
        model = keras.Model(inputs, [keras.layers.Dense(1)(inputs) for _ in range(outputs)])
        model.compile("sgd", ["mse"] * outputs, metrics=[[given()] for _ in range(outputs)])
        return model

    def train(model):
        history = model.fit(X, [Y] * outputs, batch_size=4, epochs=2, shuffle=False, verbose=0).history
        return sorted(values for name, values in history.items() if "total" in name)

    for totals in on_replicas(2, build, train):
        np.testing.assert_allclose(totals, [[np.abs(Y).sum()] * 2] * outputs, rtol=1e-5)
