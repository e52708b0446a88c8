"""Sequences: time series in windows, texts, bucketed batches, positions, translation of sums."""

import numpy as np
from conformance.table import outcome

from .table import program


def weather(hours):
    """Return the hourly temperature, pressure and wind of a made-up place: [hours, 3] float32."""
    random = np.random.default_rng(3)
    hour = np.arange(hours)
    temperature = 10 + 8 * np.sin(2 * np.pi * hour / 24) + np.cumsum(random.normal(0, 0.1, hours))
    pressure = 1000 + 5 * np.cos(2 * np.pi * hour / 60) + random.normal(0, 0.3, hours)
    return np.stack([temperature, pressure, random.gamma(2.0, 1.5, hours)], axis=1).astype("float32")


@program()
def weather_forecast(keras):
    """Windows of a series, an LSTM, and a metric with state that compares with the naive forecast."""
    data = weather(420)
    split, past, future = 300, 24, 6
    mean, deviation = data[:split].mean(axis=0), data[:split].std(axis=0)
    data = (data - mean) / deviation

    class Skill(keras.metrics.Metric):
        """One minus the ratio of the model's absolute error to the error of always forecasting the mean."""

        def __init__(self, name="skill", **kwargs):
            super().__init__(name=name, **kwargs)
            self.error = self.add_weight(name="error", shape=(), initializer="zeros")
            self.naive = self.add_weight(name="naive", shape=(), initializer="zeros")

        def update_state(self, y_true, y_pred, sample_weight=None):
            import tensorflow as tf

            y_true = tf.cast(tf.reshape(y_true, [-1]), tf.float32)
            y_pred = tf.cast(tf.reshape(y_pred, [-1]), tf.float32)
            self.error.assign_add(tf.reduce_sum(tf.abs(y_true - y_pred)))
            self.naive.assign_add(tf.reduce_sum(tf.abs(y_true)))

        def result(self):
            return 1 - self.error / (self.naive + 1e-7)

        def reset_state(self):
            self.error.assign(0.0)
            self.naive.assign(0.0)

    def windows(part, **kwargs):
        return keras.utils.timeseries_dataset_from_array(
            part[:-future],
            part[past + future - 1 :, 0],
            sequence_length=past,
            sampling_rate=2,
            batch_size=50,
            **kwargs,
        )

    train, valid = windows(data[:split], shuffle=True, seed=9), windows(data[split:])
    inputs = keras.Input((past, data.shape[1]))
    hidden = keras.layers.LSTM(10)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=[keras.metrics.RootMeanSquaredError(), Skill()])
    stop = keras.callbacks.EarlyStopping(monitor="val_loss", min_delta=0, patience=3)
    history = model.fit(train, epochs=4, validation_data=valid, callbacks=[stop], verbose=0)
    forecast = model.predict(valid, verbose=0) * deviation[0] + mean[0]
    return outcome(model, history, forecast=forecast)


@program()
def anomalies_in_a_series(keras):
    """A convolutional autoencoder; rows that are reconstructed worse than all training rows are anomalies."""
    layers = keras.layers
    series = weather(330)[:, 0]
    series = (series - series.mean()) / series.std()
    steps = 24
    x = np.stack([series[i : i + steps] for i in range(len(series) - steps + 1)])[..., None]
    model = keras.Sequential(
        [
            keras.Input((steps, 1)),
            layers.Conv1D(8, 5, padding="same", strides=2, activation="relu"),
            layers.Conv1D(4, 5, padding="same", strides=2, activation="relu"),
            layers.Conv1DTranspose(4, 5, padding="same", strides=2, activation="relu"),
            layers.Conv1DTranspose(8, 5, padding="same", strides=2, activation="relu"),
            layers.Conv1DTranspose(1, 5, padding="same"),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(learning_rate=0.005), loss="mse")
    history = model.fit(
        x,
        x,
        epochs=5,
        batch_size=64,
        validation_split=0.1,
        shuffle=False,
        callbacks=[keras.callbacks.EarlyStopping(monitor="val_loss", patience=5, mode="min")],
        verbose=0,
    )
    threshold = np.max(np.mean(np.abs(model.predict(x, batch_size=50, verbose=0) - x), axis=1))
    broken = x.copy()
    broken[40:45, 10:14] += 4
    error = np.mean(np.abs(model.predict(broken, batch_size=50, verbose=0) - broken), axis=1)[:, 0]
    return outcome(model, history, threshold=threshold, anomalies=np.flatnonzero(error > threshold))


def reviews(rows):
    """Return short texts, and whether each is a good review."""
    random = np.random.default_rng(17)
    good, bad = ["great", "lovely", "superb", "fun"], ["boring", "awful", "weak", "dull"]
    filler = ["the", "movie", "was", "a", "plot", "with", "actors", "and", "music"]
    texts, labels = [], []
    for _ in range(rows):
        label = int(random.integers(0, 2))
        words = [str(word) for word in random.choice(filler, random.integers(3, 15))]
        for _ in range(2):
            words.insert(int(random.integers(0, len(words))), str(random.choice(good if label else bad)))
        texts.append("<br />".join([" ".join(words).capitalize(), "!"]))
        labels.append(label)
    return np.array(texts), np.array(labels, "float32")


@program()
def text_classification_from_scratch(keras):
    """``TextVectorization`` with a custom function, adapted to the texts and applied to the datasets."""
    import re
    import string

    import tensorflow as tf

    texts, labels = reviews(330)

    def standardize(text):
        text = tf.strings.regex_replace(tf.strings.lower(text), "<br />", " ")
        return tf.strings.regex_replace(text, f"[{re.escape(string.punctuation)}]", "")

    vectorize = keras.layers.TextVectorization(
        standardize=standardize, max_tokens=40, output_mode="int", output_sequence_length=16
    )
    raw = tf.data.Dataset.from_tensor_slices((texts, labels))
    train, valid = raw.take(250).batch(36), raw.skip(250).batch(36)
    vectorize.adapt(train.map(lambda text, _: text))

    def encode(text, label):
        return vectorize(tf.expand_dims(text, -1)), label

    inputs = keras.Input((None,), dtype="int64")
    hidden = keras.layers.Embedding(vectorize.vocabulary_size(), 8)(inputs)
    hidden = keras.layers.Conv1D(12, 3, padding="valid", activation="relu")(hidden)
    hidden = keras.layers.GlobalMaxPooling1D()(hidden)
    hidden = keras.layers.Dense(8, activation="relu")(hidden)
    model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid", name="predictions")(hidden))
    model.compile(loss="binary_crossentropy", optimizer=keras.optimizers.Adam(0.01), metrics=["accuracy"])
    history = model.fit(
        train.map(encode).cache().prefetch(10), validation_data=valid.map(encode).cache(), epochs=4, verbose=0
    )

    text_in = keras.Input((1,), dtype="string")
    end_to_end = keras.Model(text_in, model(vectorize(text_in)))
    end_to_end.compile(loss="binary_crossentropy", optimizer="adam", metrics=["accuracy"])
    return outcome(model, history, evaluated=end_to_end.evaluate(valid, verbose=0))


@program()
def tagger_in_buckets(keras):
    """Sentences of similar lengths share a batch; padding is masked in the loss, the layers and the metrics."""
    import tensorflow as tf

    random = np.random.default_rng(29)
    sentences = [random.integers(1, 30, length) for length in random.integers(2, 14, 290)]
    # A word's tag depends on the word and on the previous one.
    tags = [(words + np.concatenate([[0], words[:-1]])) % 4 for words in sentences]

    def rows():
        for words, tagged in zip(sentences, tags, strict=True):
            yield words.astype("int32"), tagged.astype("int32")

    def buckets(data):
        return data.bucket_by_sequence_length(
            lambda words, _: tf.shape(words)[0],
            bucket_boundaries=[8],
            bucket_batch_sizes=[40, 25],
            padding_values=(0, 0),
        )

    signature = (tf.TensorSpec((None,), tf.int32), tf.TensorSpec((None,), tf.int32))
    data = tf.data.Dataset.from_generator(rows, output_signature=signature)

    def weigh(words, tagged):
        return words, tagged, tf.cast(words != 0, tf.float32)

    train = buckets(data.take(230)).map(weigh)
    valid = buckets(data.skip(230)).map(weigh)
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(30, 8, mask_zero=True),
            keras.layers.GRU(10, return_sequences=True),
            keras.layers.Dense(4),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.03), loss, weighted_metrics=["accuracy"])
    history = model.fit(train, validation_data=valid, epochs=3, verbose=0)
    return outcome(model, history, tags=model.predict(np.array([[3, 9, 4, 0, 0]], "int32"), verbose=0))


@program()
def transformer_with_positions(keras):
    """All rows look up the same positions; Adam moves only the vectors that were looked up, as in one process."""
    layers = keras.layers
    texts, labels = reviews(300)
    vectorize = layers.TextVectorization(max_tokens=40, output_sequence_length=12)
    vectorize.adapt(texts)
    x = np.asarray(vectorize(texts)).astype("int32")

    class TokenAndPosition(layers.Layer):
        def __init__(self, length, words, width):
            super().__init__()
            self.words = layers.Embedding(words, width)
            self.positions = layers.Embedding(length, width)

        def call(self, tokens):
            import tensorflow as tf

            return self.words(tokens) + self.positions(tf.range(tf.shape(tokens)[-1]))

    inputs = keras.Input((12,), dtype="int32")
    hidden = TokenAndPosition(12, 40, 8)(inputs)
    attended = layers.MultiHeadAttention(num_heads=2, key_dim=4)(hidden, hidden)
    hidden = layers.LayerNormalization(epsilon=1e-6)(hidden + attended)
    forward = layers.Dense(8)(layers.Dense(16, activation="relu")(hidden))
    hidden = layers.LayerNormalization(epsilon=1e-6)(hidden + forward)
    hidden = layers.GlobalAveragePooling1D()(hidden)
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(hidden))
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(
        x[:220], labels[:220], batch_size=32, epochs=3, validation_data=(x[220:], labels[220:]), verbose=0
    )
    return outcome(model, history)


@program()
def adding_numbers_as_text(keras):
    """Sequence to sequence: "12+7" to "19", one character at a time, fitted epoch by epoch in a loop."""
    layers = keras.layers
    characters, random = "0123456789+ ", np.random.default_rng(1)
    pairs = random.integers(0, 100, (360, 2))

    def encode(texts, width):
        table = np.eye(len(characters), dtype="float32")
        return np.stack([table[[characters.index(char) for char in text.ljust(width)]] for text in texts])

    x = encode([f"{a}+{b}" for a, b in pairs], 5)[:, ::-1]
    y = encode([str(a + b) for a, b in pairs], 3)
    model = keras.Sequential(
        [
            keras.Input((5, len(characters))),
            layers.LSTM(16),
            layers.RepeatVector(3),
            layers.LSTM(16, return_sequences=True),
            layers.Dense(len(characters), activation="softmax"),
        ]
    )
    model.compile(loss="categorical_crossentropy", optimizer=keras.optimizers.Adam(0.01), metrics=["accuracy"])
    losses, guesses = [], []
    for _ in range(3):
        history = model.fit(x[:320], y[:320], batch_size=50, epochs=1, validation_data=(x[320:], y[320:]), verbose=0)
        losses += history.history["loss"]
        row = x[[330]]
        guess = np.argmax(model.predict(row, verbose=0), axis=-1)[0]
        guesses.append("".join(characters[i] for i in guess).encode().ljust(3))
    return outcome(model, history, losses=losses, guesses=np.frombuffer(b"".join(guesses), "uint8"))
