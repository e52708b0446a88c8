"""The arguments of ``compile``."""

import numpy as np

from .table import BATCH, ROWS, case, dataset, dense, digits, fit, outcome


@case()
def steps_per_execution(keras):
    """Three steps per execution, and seven per epoch."""
    x, y = digits()
    model = dense(keras, steps_per_execution=3)
    history = fit(model, x, y, validation_data=(x[:100], y[:100]))
    return outcome(model, history, predicted=model.predict(x, batch_size=BATCH, verbose=0))


@case()
def steps_per_execution_and_epoch(keras):
    x, y = digits()
    model = dense(keras, steps_per_execution=2)
    return outcome(model, fit(model, dataset(x, y).repeat(), steps_per_epoch=4))


@case(keras_3_only=True)
def steps_per_execution_of_unknown_length(keras):
    x, y = digits()
    model = dense(keras, steps_per_execution=2)
    data = dataset(x, y, batch=1).unbatch().filter(lambda _, label: label != 3).batch(BATCH)
    return outcome(model, fit(model, data))


@case()
def jit_compile(keras):
    x, y = digits()
    model = dense(keras, jit_compile=True)
    history = fit(model, x, y)
    return outcome(model, history, predicted=model.predict(x, batch_size=BATCH, verbose=0))


@case()
def run_eagerly(keras):
    x, y = digits(BATCH * 2 + 5)
    model = dense(keras, run_eagerly=True)
    return outcome(model, fit(model, x, y), evaluated=model.evaluate(x, y, batch_size=BATCH, verbose=0))


@case()
def weighted_metrics(keras):
    x, y = digits()
    model = dense(keras, metrics=["accuracy"], weighted_metrics=["accuracy", "sparse_categorical_crossentropy"])
    return outcome(model, fit(model, x, y, sample_weight=np.linspace(0.1, 2, ROWS).astype("float32")))


@case()
def metrics_of_counts(keras):
    x, y = digits()
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(1, activation="sigmoid")])
    metrics = [keras.metrics.AUC(name="auc"), keras.metrics.Precision(name="p"), keras.metrics.Recall(name="r")]
    model.compile(keras.optimizers.SGD(0.5), "binary_crossentropy", metrics=metrics)
    labels = (y < 5).astype("float32")[:, None]
    history = fit(model, x, labels, validation_data=(x[:90], labels[:90]))
    return outcome(model, history, evaluated=model.evaluate(x, labels, batch_size=BATCH, verbose=0))


@case()
def mean_iou(keras):
    x, y = digits()
    model = dense(keras, metrics=[keras.metrics.MeanIoU(10, sparse_y_pred=False, name="iou")])
    return outcome(model, fit(model, x, y))


@case(keras_3_only=True)
def metric_of_vectors(keras):
    x, y = digits()
    metrics = [keras.metrics.F1Score(average=None, name="f1")]
    model = dense(keras, loss="categorical_crossentropy", metrics=metrics)
    return outcome(model, fit(model, x, np.eye(10, dtype="float32")[y]))


@case()
def custom_metric(keras):
    import tensorflow as tf

    class Confident(keras.metrics.Metric):
        """The fraction of rows whose highest probability is above one half."""

        def __init__(self):
            super().__init__(name="confident")
            self.total = self.add_weight(name="total", initializer="zeros")
            self.count = self.add_weight(name="count", initializer="zeros")

        def update_state(self, y_true, y_pred, sample_weight=None):
            confident = tf.cast(tf.reduce_max(y_pred, axis=-1) > 0.5, tf.float32)
            self.total.assign_add(tf.reduce_sum(confident))
            self.count.assign_add(tf.cast(tf.shape(confident)[0], tf.float32))

        def result(self):
            return self.total / (self.count + 1e-7)

    x, y = digits()
    model = dense(keras, metrics=[Confident()])
    return outcome(model, fit(model, x, y))


@case()
def metric_of_plain_variables(keras):
    """Metrics whose variables are not those of ``add_weight``."""
    import tensorflow as tf

    class Confident(keras.metrics.Metric):
        """The fraction of rows whose highest probability is above a threshold."""

        def __init__(self, name, variable):
            super().__init__(name=name)
            self.threshold = tf.Variable(0.5, trainable=False, name="threshold")
            self.total, self.count = variable(self, "total"), variable(self, "count")

        def update_state(self, y_true, y_pred, sample_weight=None):
            confident = tf.cast(tf.reduce_max(y_pred, axis=-1) > self.threshold, tf.float32)
            self.total.assign_add(tf.reduce_sum(confident))
            self.count.assign_add(tf.cast(tf.shape(confident)[0], tf.float32))

        def result(self):
            return (self.threshold + self.total) / (self.count + 1e-7)

        def reset_state(self):
            self.total.assign(0.0)
            self.count.assign(0.0)

    kinds = {"tensorflow": lambda metric, name: tf.Variable(0.0, trainable=False, name=name)}
    if hasattr(keras, "Variable"):
        kinds["keras"] = lambda metric, name: keras.Variable(0.0, trainable=False, name=name)
        kinds["none"] = lambda metric, name: metric.add_variable((), "zeros", aggregation="none", name=name)
    x, y = digits(2 * BATCH + 1)
    model = dense(keras, metrics=[Confident(*each) for each in kinds.items()])
    return outcome(model, fit(model, x, y), evaluated=model.evaluate(x, y, batch_size=BATCH, verbose=0))


@case()
def metric_outside_of_the_model(keras):
    """``get_metrics_result`` reads a metric that is not among the model's."""
    import tensorflow as tf

    brightness = keras.metrics.Mean(name="brightness")

    class Model(keras.Model):
        def train_step(self, data):
            brightness.update_state(tf.reduce_mean(data[0], axis=1))
            return super().train_step(data)

        def get_metrics_result(self):
            return {**super().get_metrics_result(), "brightness": brightness.result()}

    x, y = digits()
    inputs = keras.Input((64,))
    model = Model(inputs, keras.layers.Dense(10, activation="softmax")(inputs))
    model.compile(keras.optimizers.SGD(0.2), "sparse_categorical_crossentropy")
    return outcome(model, fit(model, x, y))


@case()
def custom_loss(keras):
    import tensorflow as tf

    def loss(y_true, y_pred):
        return tf.reduce_sum(tf.square(tf.one_hot(tf.reshape(tf.cast(y_true, tf.int32), [-1]), 10) - y_pred), axis=-1)

    x, y = digits()
    model = dense(keras, loss=loss)
    return outcome(model, fit(model, x, y))


@case(keras_3_only=True)
def loss_without_reduction(keras):
    """The gradient of a loss that is a vector is that of its sum."""
    loss = keras.losses.SparseCategoricalCrossentropy(reduction=None)
    x, y = digits()
    model = dense(keras, keras.optimizers.SGD(0.005), loss=loss)
    return outcome(model, fit(model, x, y))


@case(rtol=1e-11, atol=1e-11)
def float64(keras):
    """Everything in float64, whose digits the workers' shares and moving averages must keep."""
    before = keras.backend.floatx()
    keras.backend.set_floatx("float64")
    keras.mixed_precision.set_global_policy("float64")  # another case may have set one, which counts more
    try:
        layers = keras.layers
        model = keras.Sequential(
            [
                keras.Input((64,)),
                layers.Dense(12, activation="tanh", kernel_regularizer="l2"),
                layers.BatchNormalization(momentum=0.9, trainable=False),
                layers.Dense(10, activation="softmax"),
            ]
        )
        model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
        x, y = digits()
        history = fit(model, x.astype("float64"), y)
        return outcome(model, history, predicted=model.predict(x[:7].astype("float64"), verbose=0))
    finally:
        keras.backend.set_floatx(before)
        keras.mixed_precision.set_global_policy(before)
