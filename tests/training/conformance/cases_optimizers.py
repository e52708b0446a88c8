"""Optimizers, and options that change their updates."""

import numpy as np

from .cases_models import words
from .table import ROWS, case, dense, digits, fit, outcome


def with_optimizer(keras, optimizer, epochs=2):
    x, y = digits()
    model = dense(keras, optimizer)
    return outcome(model, fit(model, x, y, epochs=epochs))


@case()
def sgd(keras):
    return with_optimizer(keras, keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True))


@case()
def adam(keras):
    return with_optimizer(keras, keras.optimizers.Adam(0.01))


@case()
def adamw(keras):
    return with_optimizer(keras, keras.optimizers.AdamW(0.01, weight_decay=0.05))


@case()
def rmsprop(keras):
    return with_optimizer(keras, keras.optimizers.RMSprop(0.01))


@case(rtol=1e-3, atol=1e-3)
def lion(keras):
    """Lion uses only the sign, so for a gradient near zero, the last digit is decisive."""
    return with_optimizer(keras, keras.optimizers.Lion(0.0003))


@case()
def moving_average_of_weights(keras):
    return with_optimizer(keras, keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9))


@case()
def moving_average_of_weights_set_often(keras):
    return with_optimizer(keras, keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3))


@case(keras_3_only=True)
def clip_norm(keras):
    return with_optimizer(keras, keras.optimizers.SGD(0.5, clipnorm=0.05))


@case(keras_3_only=True)
def clip_global_norm(keras):
    return with_optimizer(keras, keras.optimizers.SGD(0.5, global_clipnorm=0.05))


@case(keras_3_only=True)
def clip_value(keras):
    return with_optimizer(keras, keras.optimizers.SGD(0.5, clipvalue=0.002))


@case(keras_3_only=True)
def clip_norm_of_an_embedding(keras):
    ids, y = words(vocabulary=20000)
    model = keras.Sequential(
        [keras.Input((9,), dtype="int64"), keras.layers.Embedding(20000, 8), keras.layers.Flatten(),
         keras.layers.Dense(3, activation="softmax")]
    )  # fmt: skip
    model.compile(keras.optimizers.SGD(0.5, global_clipnorm=0.1), "sparse_categorical_crossentropy")
    return outcome(model, fit(model, ids, y))


@case(keras_3_only=True)
def gradient_accumulation(keras):
    return with_optimizer(keras, keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=3))


@case(keras_3_only=True)
def gradient_accumulation_with_clipping(keras):
    return with_optimizer(
        keras, keras.optimizers.Adam(0.01, gradient_accumulation_steps=2, global_clipnorm=0.1, use_ema=True)
    )


def scaled(keras, initial_scale):
    inner = keras.optimizers.SGD(0.1, momentum=0.9)
    if hasattr(keras.optimizers, "LossScaleOptimizer"):
        return keras.optimizers.LossScaleOptimizer(inner, initial_scale=initial_scale, dynamic_growth_steps=4)
    return keras.mixed_precision.LossScaleOptimizer(inner, initial_scale=initial_scale, dynamic_growth_steps=4)


@case()
def loss_scale(keras):
    return with_optimizer(keras, scaled(keras, 1024.0))


@case()
def loss_scale_with_overflow(keras):
    """The scaled gradient overflows only on the worker that has a row of huge values, but all must skip the step."""
    x, y = digits()
    x = x.copy()
    x[100] = 1e30
    model = dense(keras, scaled(keras, 2.0**30), metrics=[])
    fit(model, x, y)
    return outcome(model)


@case()
def schedule(keras):
    return with_optimizer(keras, keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.3, 2, 0.8)))


@case()
def constraint(keras):
    x, y = digits()
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(12, kernel_constraint="max_norm", activation="tanh"),
         keras.layers.Dense(10, activation="softmax")]
    )  # fmt: skip
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    return outcome(model, fit(model, x, y))


@case()
def loss_of_sums(keras):
    """The loss is the sum over a batch."""
    x, y = digits()
    model = dense(keras, keras.optimizers.SGD(0.005), loss=keras.losses.SparseCategoricalCrossentropy(reduction="sum"))
    return outcome(model, fit(model, x, y))


@case(keras_3_only=True)
def loss_by_weights(keras):
    """The loss is a mean that divides by the sum of the weights in the global batch."""
    x, y = digits()
    loss = keras.losses.SparseCategoricalCrossentropy(reduction="mean_with_sample_weight")
    model = dense(keras, keras.optimizers.SGD(0.1), loss=loss)
    return outcome(model, fit(model, x, y, sample_weight=np.linspace(0, 2, ROWS).astype("float32")))


@case()
def table_by_rows_and_as_a_whole(keras):
    """A recommender: each row looks up some items, and is compared to all of them."""
    import tensorflow as tf

    class Recommender(keras.Model):
        def __init__(self):
            super().__init__()
            self.items = keras.layers.Embedding(15, 6)

        def call(self, seen):
            return tf.matmul(tf.reduce_mean(self.items(seen), axis=1), self.items(tf.range(15)), transpose_b=True)

    numbers = np.random.default_rng(5)
    seen, bought = numbers.integers(0, 15, (ROWS, 4)), numbers.integers(0, 15, ROWS)
    model = Recommender()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss, metrics=["accuracy"])
    return outcome(model, fit(model, seen, bought))


@case()
def optimizer_of_tensorflow_1(keras):
    """tf_keras takes the optimizers of ``tf.compat.v1.train``, which sum gradients themselves."""
    import tensorflow as tf

    is_tf_keras = keras.Model.__module__.startswith("tf_keras")
    return with_optimizer(keras, tf.compat.v1.train.MomentumOptimizer(0.1, 0.9) if is_tf_keras else "sgd")
