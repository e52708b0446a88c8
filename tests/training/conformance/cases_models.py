"""Kinds of models and layers."""

import numpy as np

from .table import BATCH, ROWS, case, dataset, dense, digits, fit, outcome


@case()
def multi_output(keras):
    x, y = digits()
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(12, activation="tanh")(inputs)
    digit = keras.layers.Dense(10, activation="softmax", name="digit")(hidden)
    parity = keras.layers.Dense(1, activation="sigmoid", name="parity")(hidden)
    model = keras.Model(inputs, {"digit": digit, "parity": parity})
    model.compile(
        keras.optimizers.SGD(0.1),
        loss={"digit": "sparse_categorical_crossentropy", "parity": "binary_crossentropy"},
        loss_weights={"digit": 1.0, "parity": 0.3},
        metrics={"digit": ["accuracy"], "parity": ["mae"]},
    )
    labels = {"digit": y, "parity": (y % 2).astype("float32")[:, None]}
    predicted = model.predict(x, batch_size=BATCH, verbose=0)
    return outcome(model, fit(model, x, labels), before=predicted["parity"])


def classifier(keras):
    class Classifier(keras.Model):
        def __init__(self):
            super().__init__()
            self.hidden = keras.layers.Dense(12, activation="tanh")
            self.out = keras.layers.Dense(10, activation="softmax")

        def call(self, inputs):
            return self.out(self.hidden(inputs))

    return Classifier


@case()
def subclassed(keras):
    x, y = digits()
    model = classifier(keras)()
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return outcome(model, fit(model, x, y))


@case()
def lazily_built(keras):
    x, y = digits()
    model = keras.Sequential([keras.layers.Dense(12, activation="tanh"), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    return outcome(model, fit(model, dataset(x, y)))


def words(rows=ROWS, length=9, vocabulary=400):
    """Return token ids with padding (0) at the end, and a label for each row."""
    random = np.random.default_rng(5)
    ids = random.integers(1, vocabulary, (rows, length))
    ids[np.arange(length) >= random.integers(2, length + 1, rows)[:, None]] = 0
    return ids.astype("int64"), (ids.sum(1) % 3).astype("int32")


@case()
def embedding(keras):
    """Gradients are sparse, and stay sparse because few rows of the table are used."""
    ids, y = words(vocabulary=20000)
    model = keras.Sequential(
        [keras.Input((9,), dtype="int64"), keras.layers.Embedding(20000, 8), keras.layers.Flatten(),
         keras.layers.Dense(3, activation="softmax")]
    )  # fmt: skip
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    return outcome(model, fit(model, ids, y))


@case()
def small_embedding(keras):
    ids, y = words(vocabulary=30)
    model = keras.Sequential(
        [keras.Input((9,), dtype="int64"), keras.layers.Embedding(30, 8), keras.layers.Flatten(),
         keras.layers.Dense(3, activation="softmax")]
    )  # fmt: skip
    model.compile(keras.optimizers.SGD(0.5, momentum=0.9), "sparse_categorical_crossentropy")
    return outcome(model, fit(model, ids, y))


def recurrent(keras, layer):
    ids, y = words()
    model = keras.Sequential(
        [keras.Input((9,), dtype="int64"), keras.layers.Embedding(400, 6, mask_zero=True), layer,
         keras.layers.Dense(3, activation="softmax")]
    )  # fmt: skip
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return outcome(model, fit(model, ids, y))


@case()
def lstm(keras):
    return recurrent(keras, keras.layers.LSTM(7))


@case()
def gru(keras):
    return recurrent(keras, keras.layers.Bidirectional(keras.layers.GRU(5)))


@case()
def simple_rnn(keras):
    return recurrent(keras, keras.layers.SimpleRNN(7))


@case()
def masked_loss(keras):
    """Each word has a label, so the loss divides by the number of unmasked words in the global batch."""
    ids, _ = words()
    model = keras.Sequential(
        [keras.Input((9,), dtype="int64"), keras.layers.Embedding(400, 6, mask_zero=True),
         keras.layers.LSTM(5, return_sequences=True), keras.layers.Dense(2, activation="softmax")]
    )  # fmt: skip
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return outcome(model, fit(model, ids, (ids % 2).astype("int32")))


def images(keras, *layers):
    x, y = digits()
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Conv2D(6, 3), *layers, keras.layers.Activation("relu"),
         keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10, activation="softmax")]
    )  # fmt: skip
    model.compile(keras.optimizers.SGD(0.2), "sparse_categorical_crossentropy", metrics=["accuracy"])
    x = x.reshape(-1, 8, 8, 1)
    history = fit(model, x, y, validation_data=(x[:100], y[:100]))
    return outcome(model, history, predicted=model.predict(x[:100], batch_size=BATCH, verbose=0))


@case()
def convolution(keras):
    return images(keras)


@case(rtol=1e-3, atol=1e-4)
def batch_normalization_synchronized(keras):
    if hasattr(keras.layers, "experimental"):
        with_sync = getattr(keras.layers.experimental, "SyncBatchNormalization", None)
        return images(keras, with_sync() if with_sync else keras.layers.BatchNormalization(synchronized=True))
    return images(keras, keras.layers.BatchNormalization(synchronized=True))


def ghost_batches(keras, workers):
    """Train like workers with their own statistics: normalise each part, and average the moving statistics."""
    import tensorflow as tf

    x, y = digits(6 * BATCH)
    model = normalized(keras)
    optimizer, batch_norm = model.optimizer, model.layers[1]
    for _ in range(2):
        for start in range(0, len(x), BATCH):
            initial = [variable.numpy() for variable in batch_norm.non_trainable_variables]
            totals, gradients = [0.0 * value for value in initial], None
            for part in range(workers):
                rows = slice(start + part * BATCH // workers, start + (part + 1) * BATCH // workers)
                for variable, value in zip(batch_norm.non_trainable_variables, initial, strict=True):
                    variable.assign(value)
                with tf.GradientTape() as tape:
                    predicted = model(x[rows], training=True)
                    loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y[rows], predicted)) / workers
                local = tape.gradient(loss, model.trainable_variables)
                gradients = local if gradients is None else [a + b for a, b in zip(gradients, local, strict=True)]
                totals = [t + v.numpy() for t, v in zip(totals, batch_norm.non_trainable_variables, strict=True)]
            for variable, total in zip(batch_norm.non_trainable_variables, totals, strict=True):
                variable.assign(total / workers)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return outcome(model, predicted=model.predict(x, batch_size=BATCH, verbose=0))


def normalized(keras):
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(8), keras.layers.BatchNormalization(momentum=0.8),
         keras.layers.Dense(10, activation="softmax")]
    )  # fmt: skip
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    return model


@case(rtol=1e-3, atol=1e-4, alone=ghost_batches)
def batch_normalization(keras):
    """Each worker normalises with its own rows' statistics, as in tf.distribute; moving statistics are averaged."""
    x, y = digits(6 * BATCH)
    model = normalized(keras)
    fit(model, x, y)
    return outcome(model, predicted=model.predict(x, batch_size=BATCH, verbose=0))


@case()
def dropout(keras):
    """The generator draws numbers of 64 bits in smaller groups."""
    x, y = digits()
    layers = keras.layers
    hidden = [
        layers.Dense(24, activation="tanh"),
        layers.Dropout(0.3, seed=11),
        layers.Dropout(0.2, seed=12, dtype="float64"),
    ]
    model = keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(10, activation="softmax")])
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    return outcome(model, fit(model, x, y))


@case()
def noise(keras):
    x, y = digits()
    layers = keras.layers
    kinds = [layers.GaussianNoise(0.2, seed=3), layers.GaussianDropout(0.2, seed=4), layers.AlphaDropout(0.2, seed=5)]
    hidden = [layer for kind in kinds for layer in (layers.Dense(16, activation="tanh"), kind)]
    model = keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(10, activation="softmax")])
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    return outcome(model, fit(model, x, y))


@case()
def dropout_with_a_noise_shape(keras):
    """The mask of a row covers all units, or one mask covers all rows, or weights are dropped."""
    import tensorflow as tf

    class Dropped(keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(12, 10), initializer="glorot_uniform", name="kernel")
            self.drop = keras.layers.Dropout(0.2, seed=4)

        def call(self, inputs, training=None):
            return tf.matmul(inputs, self.drop(tf.convert_to_tensor(self.kernel), training=training))

    x, y = digits()
    layers = [keras.layers.Dropout(0.2, noise_shape=shape, seed=3) for shape in ((None, 1), (1, 12))]
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(12), *layers, Dropped()])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.2), loss)
    history = fit(model, x, y)
    model.compile(keras.optimizers.SGD(0.2), loss, run_eagerly=True)
    return outcome(model, history, eagerly=fit(model, x[:BATCH], y[:BATCH]).history["loss"])


@case()
def spatial_dropout(keras):
    """The same channels are dropped at all positions of a row."""
    x, y = digits()
    layers = keras.layers
    hidden = [layers.Reshape((8, 8)), layers.Conv1D(8, 3), layers.SpatialDropout1D(0.4, seed=3), layers.Flatten()]
    model = keras.Sequential([keras.Input((64,)), *hidden, layers.Dense(10, activation="softmax")])
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    return outcome(model, fit(model, x, y))


@case()
def attention(keras):
    x, y = digits()
    inputs = keras.Input((64,))
    rows = keras.layers.Reshape((8, 8))(inputs)
    attended = keras.layers.MultiHeadAttention(2, 4)(rows, rows)
    hidden = keras.layers.LayerNormalization()(attended + rows)
    outputs = keras.layers.Dense(10, activation="softmax")(keras.layers.GlobalAveragePooling1D()(hidden))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.2), "sparse_categorical_crossentropy")
    return outcome(model, fit(model, x, y))


@case()
def regularizers(keras):
    x, y = digits()
    model = keras.Sequential(
        [keras.Input((64,)),
         keras.layers.Dense(12, activation="tanh", kernel_regularizer="l2"),
         keras.layers.Dense(10, activation="softmax", bias_regularizer=keras.regularizers.L1(0.02))]
    )  # fmt: skip
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return outcome(model, fit(model, x, y), evaluated=model.evaluate(x, y, batch_size=BATCH, verbose=0))


@case(since=(3, 14))  # older releases sum over a batch's rows instead of averaging
def activity_regularizers(keras):
    x, y = digits()
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(12, activation="tanh", activity_regularizer="l1"),
         keras.layers.Dense(10, activation="softmax")]
    )  # fmt: skip
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return outcome(model, fit(model, x, y), evaluated=model.evaluate(x, y, batch_size=BATCH, verbose=0))


@case()
def added_loss(keras):
    import tensorflow as tf

    class Penalty(keras.layers.Layer):
        def call(self, inputs):
            self.add_loss(0.1 * tf.reduce_mean(tf.square(inputs)))
            return inputs

    x, y = digits()
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(12), Penalty(), keras.layers.Dense(10, activation="softmax")]
    )
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    return outcome(model, fit(model, x, y))


@case(keras_3_only=True)
def custom_train_step(keras):
    """The train_step of Keras' guide, which returns the metrics' results."""
    import tensorflow as tf

    class Custom(classifier(keras)):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                predicted = self(x, training=True)
                loss = self.compute_loss(y=y, y_pred=predicted)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            for metric in self.metrics:
                if metric.name == "loss":
                    metric.update_state(loss)
                else:
                    metric.update_state(y, predicted)
            return {metric.name: metric.result() for metric in self.metrics if metric.name != "loss"}

    x, y = digits(6 * BATCH)
    model = Custom()
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return outcome(model, fit(model, x, y))


@case()
def gathered_in_a_step(keras):
    """A loss over pairs of rows of the whole batch, for which each replica gathers the rows of the others."""
    import tensorflow as tf

    class Contrast(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(6)

        def call(self, x):
            return self.dense(x)

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                mine = tf.math.l2_normalize(self(x, training=True), axis=1)
                replica = tf.distribute.get_replica_context()
                every = replica.all_gather(mine, axis=0)
                labels = replica.all_gather(tf.cast(tf.reshape(y, [-1]), tf.float32), axis=0)
                alike = tf.cast(tf.equal(tf.cast(tf.reshape(y, [-1, 1]), tf.float32), labels[tf.newaxis]), tf.float32)
                loss = tf.reduce_mean(tf.square(tf.matmul(mine, every, transpose_b=True) - alike))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"loss": loss}

    x, y = digits()
    model = Contrast()
    model.compile(keras.optimizers.SGD(0.3))
    return outcome(model, fit(model, x, y))


@case()
def masked_rows_of_own_lengths(keras):
    """The model drops the columns that are padding in all its rows, so parts of a batch have different lengths."""
    import tensorflow as tf

    class Trimmed(keras.layers.Layer):
        def call(self, x):
            return x[:, : tf.reduce_max(tf.reduce_sum(tf.cast(x != 0, tf.int32), axis=1))]

        def compute_output_shape(self, shape):
            return (shape[0], None)

    def per_token(y_true, y_pred):
        wanted = y_true[:, : tf.shape(y_pred)[1]]
        return keras.losses.sparse_categorical_crossentropy(wanted, y_pred)

    numbers = np.random.default_rng(3)
    lengths = np.sort(numbers.integers(1, 13, 4 * BATCH))
    tokens = numbers.integers(1, 20, (4 * BATCH, 12)) * (np.arange(12) < lengths[:, np.newaxis])
    inputs = keras.layers.Input((12,), dtype="int32")
    hidden = keras.layers.Embedding(20, 6, mask_zero=True)(Trimmed()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(20, activation="softmax")(hidden))
    model.compile(keras.optimizers.SGD(0.5), per_token)
    return outcome(model, fit(model, tokens.astype("int32"), (tokens // 2).astype("int32")))


@case()
def reduced_in_a_step(keras):
    """A layer normalises with the mean of the whole batch, for which it sums over the replicas itself."""
    import tensorflow as tf

    class Centred(keras.layers.Layer):
        def call(self, x):
            count = tf.cast(tf.shape(x)[0], x.dtype)
            replica = tf.distribute.get_replica_context()
            total, rows = replica.all_reduce(tf.distribute.ReduceOp.SUM, [tf.reduce_sum(x, axis=0), count])
            return x - total / rows

    x, y = digits()
    layers = [keras.layers.Dense(8), Centred(), keras.layers.Dense(10, activation="softmax")]
    model = keras.Sequential(layers)  # not built before the first step, which has a replica context
    model.compile(keras.optimizers.SGD(0.3), "sparse_categorical_crossentropy")
    return outcome(model, fit(model, x, y))


@case()
def custom_logs(keras):
    """The step returns a value that no metric holds; its log is the mean over the workers' parts."""
    import tensorflow as tf

    class Custom(classifier(keras)):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                predicted = self(x, training=True)
                each = keras.losses.sparse_categorical_crossentropy(y, predicted)
                loss = tf.reduce_mean(each)
                if hasattr(self.optimizer, "scale_loss"):  # Keras 3; changes nothing for this optimizer
                    loss = self.optimizer.scale_loss(loss)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"mine": loss}

    x, y = digits(6 * BATCH)
    model = Custom()
    model.compile(keras.optimizers.SGD(0.1))
    return outcome(model, fit(model, x, y))


@case(rtol=1e-5, atol=1e-5)
def custom_loop(keras):
    """The loop of TensorFlow's guide: ``strategy.run`` on a distributed dataset."""
    import tensorflow as tf

    x, y = digits(6 * BATCH)
    strategy = tf.distribute.get_strategy()
    optimizer = keras.optimizers.Adam(0.01)
    model = dense(keras, optimizer)
    optimizer.build(model.trainable_variables)
    loss_fn = keras.losses.SparseCategoricalCrossentropy(reduction="none")

    def step(features, labels):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(loss_fn(labels, model(features, training=True))) / BATCH
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    @tf.function
    def distributed_step(features, labels):
        return strategy.reduce("SUM", strategy.run(step, (features, labels)), axis=None)

    losses = []
    for _ in range(2):
        for features, labels in strategy.experimental_distribute_dataset(dataset(x, y)):
            losses.append(float(distributed_step(features, labels)))
    return outcome(model, losses=losses)


@case()
def frozen_layers(keras):
    x, y = digits()
    model = dense(keras)
    model.layers[0].trainable = False
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    first = fit(model, x, y, epochs=1)
    model.layers[0].trainable = True
    model.compile(keras.optimizers.Adam(0.001), "sparse_categorical_crossentropy")
    return outcome(model, fit(model, x, y, epochs=1), before=first.history["loss"])


@case()
def nested_models(keras):
    x, y = digits()
    inner = keras.Sequential([keras.Input((64,)), keras.layers.Dense(12, activation="tanh")])
    inputs = keras.Input((64,))
    model = keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(inner(inputs)))
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    return outcome(model, fit(model, x, y))


@case(keras_3_only=True)
def lora(keras):
    x, y = digits()
    model = dense(keras)
    model.layers[0].enable_lora(rank=2)
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    return outcome(model, fit(model, x, y))


def mixed(keras, policy, optimizer):
    x, y = digits()
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = dense(keras, optimizer)
        return outcome(model, fit(model, x, y))
    finally:
        keras.mixed_precision.set_global_policy("float32")


@case(rtol=0.05, atol=0.02)
def mixed_bfloat16(keras):
    """Each layer rounds to three digits, and so does each sum over a part of a batch."""
    return mixed(keras, "mixed_bfloat16", keras.optimizers.SGD(0.1))


@case(rtol=0.02, atol=0.005)
def mixed_float16(keras):
    """Keras adds a LossScaleOptimizer, whose initial scale is too large here: all ranks skip steps."""
    return mixed(keras, "mixed_float16", keras.optimizers.SGD(0.1))


@case(keras_3_only=True, rtol=0.05, atol=0.02)
def float8(keras):
    """Products are quantised with the same scales on all ranks."""
    x, y = digits()
    model = dense(keras)
    model.quantize("float8")
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    return outcome(model, fit(model, x, y))


@case()
def adapted_normalization(keras):
    x, y = digits()
    normalization = keras.layers.Normalization()
    normalization.adapt(x)
    model = keras.Sequential([keras.Input((64,)), normalization, keras.layers.Dense(10, activation="softmax")])
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    return outcome(model, fit(model, x, y))
