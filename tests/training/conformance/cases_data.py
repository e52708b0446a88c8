"""The data passed to ``fit``."""

import numpy as np

from .table import BATCH, ROWS, case, dataset, dense, digits, fit, outcome


@case(rtol=1e-5, atol=1e-5)
def arrays(keras):
    x, y = digits()
    model = dense(keras)
    return outcome(model, fit(model, x, y))


@case()
def arrays_shuffled(keras):
    x, y = digits()
    model = dense(keras)
    return outcome(model, fit(model, x, y, shuffle=True))


@case()
def fewer_rows_than_workers(keras):
    """The last batch has a single row, so all workers but one have none."""
    x, y = digits(2 * BATCH + 1)
    model = dense(keras)
    return outcome(model, fit(model, x, y), evaluated=model.evaluate(x, y, batch_size=BATCH, verbose=0))


@case()
def dataset_with_remainder(keras):
    x, y = digits()
    model = dense(keras)
    return outcome(model, fit(model, dataset(x, y)))


@case()
def dataset_without_remainder(keras):
    x, y = digits()
    model = dense(keras)
    return outcome(model, fit(model, dataset(x, y, drop_remainder=True)))


@case(rtol=1e-5, atol=1e-5)
def dataset_repeated(keras):
    x, y = digits()
    model = dense(keras)
    return outcome(model, fit(model, dataset(x, y).repeat(), steps_per_epoch=5, epochs=3))


@case()
def dataset_with_fewer_steps(keras):
    """Several epochs share one finite dataset."""
    x, y = digits()
    model = dense(keras)
    return outcome(model, fit(model, dataset(x, y), steps_per_epoch=3, epochs=2))


@case()
def dataset_of_unknown_length(keras):
    x, y = digits()
    model = dense(keras)
    data = dataset(x, y, batch=1).unbatch().filter(lambda _, label: label != 3).batch(BATCH)
    return outcome(model, fit(model, data, epochs=3))


@case()
def dataset_shuffled(keras):
    import tensorflow as tf

    x, y = digits()
    model = dense(keras)
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(ROWS, seed=3).batch(BATCH).prefetch(2)
    return outcome(model, fit(model, data))


def without_a_seed(keras, train):
    """Return a sum that shows whether all workers together have read each row once, as one process does."""
    import tensorflow as tf

    keras.utils.set_random_seed(7)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    # The gradient is a sum: after an epoch, the weight is the sum of all rows' values.
    model.compile(keras.optimizers.SGD(1.0), loss=lambda y, p: tf.reduce_sum(y * p, axis=-1) * 0 - y[:, 0] * p[:, 0])
    tf.random.set_seed(None)
    rows = np.float32(2) ** -np.arange(12, dtype="float32")
    x, y = np.ones((12, 1), "float32"), rows[:, None]
    train(tf, model, x, y)
    return {"sum": np.asarray(model.get_weights()[0]) * 12}


@case()
def arrays_shuffled_without_a_seed(keras):
    return without_a_seed(keras, lambda tf, model, x, y: model.fit(x, y, batch_size=12, shuffle=True, verbose=0))


@case()
def dataset_shuffled_without_a_seed(keras):
    def train(tf, model, x, y):
        model.fit(tf.data.Dataset.from_tensor_slices((x, y)).shuffle(12).batch(12), verbose=0)

    return without_a_seed(keras, train)


@case()
def dataset_from_generator(keras):
    import tensorflow as tf

    x, y = digits()
    model = dense(keras)

    def rows():
        yield from zip(x, y, strict=True)

    signature = (tf.TensorSpec((64,), tf.float32), tf.TensorSpec((), tf.int32))
    return outcome(model, fit(model, tf.data.Dataset.from_generator(rows, output_signature=signature).batch(BATCH)))


@case()
def dataset_of_files(keras):
    import os
    import tempfile

    import tensorflow as tf

    x, y = digits(240)
    model = dense(keras)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "rows.tfrecord")
        with tf.io.TFRecordWriter(path) as writer:
            for features, label in zip(x, y, strict=True):
                writer.write(np.append(features, np.float32(label)).tobytes())
        rows = tf.data.TFRecordDataset(path).map(lambda row: tf.io.decode_raw(row, tf.float32))
        data = rows.map(lambda row: (row[:64], tf.cast(row[64], tf.int32))).batch(BATCH)
        return outcome(model, fit(model, data))


@case()
def sequence(keras):
    """A PyDataset, or a Sequence in tf_keras."""
    x, y = digits()
    base = keras.utils.PyDataset if hasattr(keras.utils, "PyDataset") else keras.utils.Sequence

    class Batches(base):
        def __len__(self):
            return -(-ROWS // BATCH)

        def __getitem__(self, index):
            part = slice(index * BATCH, (index + 1) * BATCH)
            return x[part], y[part]

    model = dense(keras)
    return outcome(model, fit(model, Batches(), shuffle=False))


@case()
def generator(keras):
    x, y = digits()

    def batches():
        while True:
            for start in range(0, ROWS, BATCH):
                yield x[start : start + BATCH], y[start : start + BATCH]

    model = dense(keras)
    return outcome(model, fit(model, batches(), steps_per_epoch=4, epochs=3))


@case(rtol=1e-5, atol=1e-5)
def dict_inputs(keras):
    x, y = digits()
    left, right = keras.Input((32,), name="left"), keras.Input((32,), name="right")
    hidden = keras.layers.Dense(8)(left) + keras.layers.Dense(8)(right)
    model = keras.Model({"left": left, "right": right}, keras.layers.Dense(10, activation="softmax")(hidden))
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    inputs = {"left": x[:, :32], "right": x[:, 32:]}
    return outcome(model, fit(model, inputs, y), predicted=model.predict(inputs, batch_size=BATCH, verbose=0))


@case()
def nested_inputs(keras):
    x, y = digits()
    first, second, third = (keras.Input((width,), name=name) for width, name in ((16, "a"), (16, "b"), (32, "c")))
    hidden = keras.layers.Concatenate()([first, second, third])
    model = keras.Model([first, second, third], keras.layers.Dense(10, activation="softmax")(hidden))
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    data = dataset((x[:, :16], x[:, 16:32], x[:, 32:]), y)
    return outcome(model, fit(model, data))


def ragged_words():
    import tensorflow as tf

    _, y = digits()
    lengths = 1 + np.arange(ROWS) % 7
    words = tf.RaggedTensor.from_row_lengths((np.arange(lengths.sum()) % 50).astype("int64"), lengths)
    return words, y


@case()
def ragged(keras):
    """The dataset pads ragged batches, each to its own width."""
    import tensorflow as tf

    words, y = ragged_words()
    model = keras.Sequential(
        [keras.Input((None,), dtype="int64"), keras.layers.Embedding(50, 4), keras.layers.GlobalAveragePooling1D(),
         keras.layers.Dense(10, activation="softmax")]
    )  # fmt: skip
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    data = tf.data.Dataset.from_tensor_slices((words, y)).batch(BATCH).map(lambda ids, label: (ids.to_tensor(), label))
    return outcome(model, fit(model, data))


@case()
def sparse(keras):
    import tensorflow as tf

    x, y = digits()
    rows = tf.sparse.from_dense(np.where(x > 0.5, x, 0))
    model = keras.Sequential([keras.Input((64,), sparse=True), keras.layers.Dense(10, activation="softmax")])
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    return outcome(model, fit(model, tf.data.Dataset.from_tensor_slices((rows, y)).batch(BATCH)))


@case(rtol=1e-5, atol=1e-5)
def sample_weight(keras):
    x, y = digits()
    model = dense(keras, weighted_metrics=["accuracy"])
    return outcome(model, fit(model, x, y, sample_weight=np.linspace(0, 2, ROWS).astype("float32")))


@case()
def sample_weight_in_a_dataset(keras):
    x, y = digits()
    model = dense(keras, weighted_metrics=["accuracy"])
    return outcome(model, fit(model, dataset(x, y, np.linspace(0, 2, ROWS).astype("float32"))))


@case()
def class_weight(keras):
    x, y = digits()
    model = dense(keras)
    return outcome(model, fit(model, x, y, class_weight={label: 0.5 + 0.1 * label for label in range(10)}))


@case()
def validation_data(keras):
    x, y = digits(500)
    model = dense(keras)
    return outcome(model, fit(model, x[:ROWS], y[:ROWS], validation_data=(x[ROWS:], y[ROWS:])))


@case(rtol=1e-5, atol=1e-5)
def validation_dataset(keras):
    x, y = digits(500)
    model = dense(keras)
    validation = dataset(x[ROWS:], y[ROWS:], batch=40)
    return outcome(model, fit(model, dataset(x[:ROWS], y[:ROWS]), validation_data=validation, validation_freq=2))


@case()
def validation_split(keras):
    x, y = digits()
    model = dense(keras)
    return outcome(model, fit(model, x, y, validation_split=0.3))


@case()
def auto_shard_off(keras):
    """Each worker reads the whole dataset by itself. As all read equal rows, the numbers are those of one process."""
    import tensorflow as tf

    x, y = digits(6)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    data = tf.data.Dataset.from_tensors((np.repeat(x[:1], 6, axis=0), np.repeat(y[:1], 6))).repeat(4)
    model = dense(keras)
    return outcome(model, fit(model, data.with_options(options), steps_per_epoch=4, epochs=2))
