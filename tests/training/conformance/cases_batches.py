"""Generators that several calls share, and batches that cannot be divided."""

from .table import BATCH, ROWS, case, dataset, dense, digits, fit, outcome


def batches_of_several_fits(keras, workers):
    """Without a generator, which Keras reads ahead in one process."""
    x, y = digits()
    model, rows = dense(keras), 4 * (BATCH // 2)
    parts = [slice(rows * number, rows * number + rows) for number in range(3)]
    fits = [fit(model, dataset(x[each], y[each], batch=BATCH // 2), steps_per_epoch=2) for each in parts]
    return outcome(model, losses=[each.history["loss"] for each in fits])


@case(alone=batches_of_several_fits)
def generator_of_several_fits(keras):
    """Each call continues where the one before has stopped reading."""
    x, y = digits()

    def batches():
        while True:
            for start in range(0, ROWS, BATCH // 2):
                yield x[start : start + BATCH // 2], y[start : start + BATCH // 2]

    model, source = dense(keras), batches()
    histories = [fit(model, source, steps_per_epoch=2, epochs=2).history["loss"] for _ in range(3)]
    return outcome(model, losses=histories)


@case()
def generator_without_length(keras):
    x, y = digits()
    model = dense(keras)
    batches = ((x[start : start + BATCH], y[start : start + BATCH]) for start in range(0, ROWS, BATCH))
    return outcome(model, fit(model, batches, epochs=1))


@case()
def tensors_of_different_lengths(keras):
    """Labelled rows and three times as many without labels; the batches cannot be divided."""
    import tensorflow as tf

    class Consistent(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.noise = keras.layers.Dense(10, activation="softmax"), keras.layers.Dropout(0.3, seed=5)

        def call(self, x, training=False):
            return self.dense(self.noise(x, training=training))

        def train_step(self, data):
            (unlabelled, labelled), y = data
            with tf.GradientTape() as tape:
                twice = self(unlabelled, training=True), self(unlabelled, training=False)
                loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, self(labelled)))
                loss += tf.reduce_mean(tf.square(twice[0] - twice[1]))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"loss": loss}

    x, y = digits(4 * BATCH)
    model = Consistent()
    model(x[:1])
    model.compile(keras.optimizers.Adam(0.01))
    unlabelled = tf.data.Dataset.from_tensor_slices(x).batch(36)
    labelled = tf.data.Dataset.from_tensor_slices((x[::3], y[::3])).batch(12)
    batches = tf.data.Dataset.zip((unlabelled, labelled)).map(lambda u, each: ((u, each[0]), each[1]))
    return outcome(model, fit(model, batches))


@case()
def scalar_in_the_batch(keras):
    import tensorflow as tf

    class Tempered(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(10)

        def call(self, inputs):
            return tf.nn.softmax(self.dense(inputs["pixels"]) / inputs["temperature"])

    x, y = digits(2 * BATCH + 7)
    batches = dataset(x, y).map(lambda x, y: ({"pixels": x, "temperature": tf.constant(2.0)}, y))
    model = Tempered()
    model({"pixels": x[:1], "temperature": tf.constant(2.0)})
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = fit(model, batches)
    evaluated = model.evaluate(batches, verbose=0)
    return outcome(model, history, evaluated=evaluated, predicted=model.predict(batches, verbose=0))
