"""Transformers, sequence to sequence, captions, CTC."""

import numpy as np
from conformance.table import digits, outcome

from .table import falls, program

WORDS, LENGTH = 30, 9


def sentences(rows, seed=0):
    """Return [rows, LENGTH] word numbers padded with zeros, and a label that depends on the words."""
    rng = np.random.default_rng(seed)
    words = rng.integers(1, WORDS, (rows, LENGTH)).astype("int32")
    lengths = rng.integers(2, LENGTH + 1, rows)
    words[np.arange(LENGTH) >= lengths[:, None]] = 0
    return words, (words.sum(axis=1) / lengths > 15).astype("int32")


def embedding(keras, mask_zero=True):
    """Return a layer of token and position embeddings, as in the guide on text classification with a transformer."""
    import tensorflow as tf

    class TokenAndPositionEmbedding(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.tokens = keras.layers.Embedding(WORDS, 8, mask_zero=mask_zero)
            self.positions = keras.layers.Embedding(LENGTH, 8)

        def call(self, inputs):
            return self.tokens(inputs) + self.positions(tf.range(tf.shape(inputs)[-1]))

        def compute_mask(self, inputs, mask=None):
            return self.tokens.compute_mask(inputs)

        def compute_output_shape(self, shape):
            return (*shape, 8)

    return TokenAndPositionEmbedding()


@program()
def transformer(keras):
    """Text classification with position embeddings and padding masks."""
    layers = keras.layers

    class Block(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.supports_masking = True
            self.attention = layers.MultiHeadAttention(num_heads=2, key_dim=4)
            self.feed_forward = keras.Sequential([layers.Dense(16, activation="relu"), layers.Dense(8)])
            self.norms = [layers.LayerNormalization(epsilon=1e-6) for _ in range(2)]
            self.dropouts = [layers.Dropout(0.1, seed=seed) for seed in (1, 2)]

        def call(self, inputs, training=False, mask=None):
            allowed = mask[:, None, :] if mask is not None else None
            attended = self.attention(inputs, inputs, attention_mask=allowed)
            hidden = self.norms[0](inputs + self.dropouts[0](attended, training=training))
            return self.norms[1](hidden + self.dropouts[1](self.feed_forward(hidden), training=training))

    words, labels = sentences(140)
    inputs = keras.Input((LENGTH,), dtype="int32")
    hidden = Block()(embedding(keras)(inputs))
    hidden = layers.GlobalAveragePooling1D()(hidden)
    outputs = layers.Dense(2, activation="softmax")(layers.Dense(8, activation="relu")(hidden))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.01, epsilon=1e-4), "sparse_categorical_crossentropy", metrics=["accuracy"])
    valid = (words[107:], labels[107:])
    history = model.fit(words[:107], labels[:107], batch_size=16, epochs=4, validation_data=valid, verbose=0)
    falls(history)
    evaluated = model.evaluate(words[:1], labels[:1], verbose=0)
    return outcome(model, history, evaluated=evaluated, predicted=model.predict(valid[0], batch_size=10, verbose=0))


@program()
def language_model(keras):
    """A small GPT: causal attention, weights per token, perplexity per epoch."""
    layers = keras.layers
    words, _ = sentences(107, seed=4)
    x, y = words[:, :-1], words[:, 1:]
    weights = (y != 0).astype("float32")
    inputs = keras.Input((LENGTH - 1,), dtype="int32")
    hidden = embedding(keras, mask_zero=False)(inputs)
    attended = layers.MultiHeadAttention(2, 4)(hidden, hidden, use_causal_mask=True)
    hidden = layers.LayerNormalization()(layers.Add()([hidden, attended]))
    model = keras.Model(inputs, layers.Dense(WORDS)(layers.Dense(16, activation="gelu")(hidden)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    model.compile(keras.optimizers.SGD(0.5, momentum=0.9), loss, weighted_metrics=[accuracy])
    history = model.fit(
        x[:80], y[:80], sample_weight=weights[:80], batch_size=24, epochs=3, verbose=0,
        validation_data=(x[80:], y[80:], weights[80:]),
    )  # fmt: skip
    falls(history)
    text = [3]
    for _ in range(LENGTH - 2):
        padded = np.array([text + [0] * (LENGTH - 1 - len(text))], "int32")
        logits = model.predict(padded, verbose=0)[0, len(text) - 1]
        text.append(int(np.argmax(logits[1:])) + 1)
    return outcome(model, history, perplexity=np.exp(history.history["loss"]), text=text, logits=logits)


@program()
def captioning(keras):
    """An image and the words so far give the next word, as in Kaggle's Flickr8k notebooks."""
    layers = keras.layers
    images, labels = digits(60)
    captions = np.stack([1 + labels, 11 + labels % 3, 15 + labels // 5, np.full(60, 20)], axis=1).astype("int32")
    features, so_far, following = [], [], []
    for image, caption in zip(images, captions, strict=True):
        for i in range(1, 4):
            features.append(image)
            so_far.append([0] * (4 - i) + caption[:i].tolist())
            following.append(np.eye(22, dtype="float32")[caption[i]])
    features, so_far, following = np.stack(features), np.array(so_far, "int32"), np.stack(following)

    image = keras.Input((64,), name="image")
    words = keras.Input((4,), dtype="int32", name="words")
    seen = layers.Dense(12, activation="relu")(layers.Dropout(0.2, seed=1)(image))
    read = layers.LSTM(12)(layers.Embedding(22, 6, mask_zero=True)(words))
    hidden = layers.Dense(12, activation="relu")(layers.add([seen, read]))
    model = keras.Model([image, words], layers.Dense(22, activation="softmax")(hidden))
    model.compile(keras.optimizers.Adam(0.01), "categorical_crossentropy", metrics=["accuracy"])
    history = model.fit([features, so_far], following, batch_size=50, epochs=3, validation_split=0.15, verbose=0)
    falls(history)

    caption = [int(captions[0, 0])]
    for _ in range(3):
        padded = np.array([[0] * (4 - len(caption)) + caption], "int32")
        predicted = model.predict([images[:1], padded], verbose=0)
        assert predicted.shape == (1, 22)
        caption.append(int(predicted[0].argmax()))
    return outcome(model, history, caption=caption, predicted=predicted)


@program()
def seq2seq(keras):
    """The guide's character-level translation: teacher forcing, then an encoder and a decoder that share its layers."""
    layers = keras.layers
    rng = np.random.default_rng(6)
    source = rng.integers(3, 12, (95, 5))
    target = np.concatenate([np.full((95, 1), 1), source[:, ::-1], np.full((95, 1), 2)], axis=1)
    one_hot = np.eye(12, dtype="float32")
    encoder_data, decoder_data, labels = one_hot[source], one_hot[target[:, :-1]], one_hot[target[:, 1:]]

    encoder_inputs = keras.Input((None, 12))
    _, *states = layers.LSTM(16, return_state=True)(encoder_inputs)
    decoder_inputs = keras.Input((None, 12))
    decoder_lstm = layers.LSTM(16, return_sequences=True, return_state=True)
    decoder_dense = layers.Dense(12, activation="softmax")
    decoded, _, _ = decoder_lstm(decoder_inputs, initial_state=states)
    model = keras.Model([encoder_inputs, decoder_inputs], decoder_dense(decoded))
    model.compile(keras.optimizers.RMSprop(0.01), "categorical_crossentropy", metrics=["accuracy"])
    history = model.fit([encoder_data, decoder_data], labels, batch_size=16, epochs=3, validation_split=0.2, verbose=0)
    falls(history)

    encoder = keras.Model(encoder_inputs, states)
    state_inputs = [keras.Input((16,)), keras.Input((16,))]
    decoded, *new_states = decoder_lstm(decoder_inputs, initial_state=state_inputs)
    decoder = keras.Model([decoder_inputs, *state_inputs], [decoder_dense(decoded), *new_states])
    states = encoder.predict(encoder_data[:1], verbose=0)
    token, written = 1, []
    for _ in range(6):
        probabilities, *states = decoder.predict([one_hot[[[token]]], *states], verbose=0)
        assert probabilities.shape == (1, 1, 12)
        token = int(probabilities[0, -1].argmax())
        written.append(token)
    return outcome(model, history, written=written, probabilities=probabilities)


def written_lines(rows):
    """Return [rows, 12, 8] columns of images, [rows, 3] characters padded with 99, and how many there are."""
    rng = np.random.default_rng(7)
    lengths = rng.integers(1, 4, rows)
    characters = rng.integers(0, 5, (rows, 3))
    signal = np.eye(8)[np.repeat(characters, 4, axis=1)] * (np.arange(12) < 4 * lengths[:, None])[..., None]
    characters[np.arange(3) >= lengths[:, None]] = 99
    return (signal + rng.normal(0, 0.1, signal.shape)).astype("float32"), characters.astype("int32"), lengths


@program()
def captcha_with_a_ctc_layer(keras):
    """The guide on reading captchas: labels are an input, and a layer adds the CTC loss of each row."""
    import tensorflow as tf

    class CTCLayer(keras.layers.Layer):
        def call(self, labels, predicted):
            lengths = tf.reduce_sum(tf.cast(labels != 99, tf.int32), axis=1)
            times = tf.fill(tf.shape(lengths), tf.shape(predicted)[1])
            logits = tf.math.log(tf.transpose(predicted, (1, 0, 2)) + 1e-7)
            loss = tf.nn.ctc_loss(tf.where(labels == 99, 0, labels), logits, lengths, times, blank_index=5)
            self.add_loss(tf.reduce_mean(loss))
            return predicted

    lines, characters, _ = written_lines(91)
    image = keras.Input((12, 8), name="image")
    label = keras.Input((3,), dtype="int32", name="label")
    hidden = keras.layers.Bidirectional(keras.layers.LSTM(8, return_sequences=True))(image)
    softmax = keras.layers.Dense(6, activation="softmax", name="softmax")(hidden)
    model = keras.Model([image, label], CTCLayer(name="ctc_loss")(label, softmax))
    model.compile(optimizer=keras.optimizers.Adam(0.02))
    data = tf.data.Dataset.from_tensor_slices({"image": lines, "label": characters}).batch(16).prefetch(2)
    history = model.fit(data.take(4), validation_data=data.skip(4), epochs=3, verbose=0)
    falls(history)
    reader = keras.Model(model.inputs[0], model.get_layer("softmax").output)
    read = reader.predict(lines[:13], verbose=0)
    paths, _ = tf.nn.ctc_greedy_decoder(tf.transpose(tf.math.log(read), (1, 0, 2)), [12] * 13, blank_index=5)
    return outcome(model, history, read=read, paths=tf.sparse.to_dense(paths[0], default_value=-1))


@program()
def speech_with_a_ctc_loss(keras):
    """The guide on speech recognition: the CTC loss of each row as the model's loss function."""
    import tensorflow as tf

    def ctc_loss(y_true, y_pred):
        y_true = tf.cast(y_true, tf.int32)
        lengths = tf.reduce_sum(tf.cast(y_true != 99, tf.int32), axis=1)
        times = tf.fill(tf.shape(lengths), tf.shape(y_pred)[1])
        labels = tf.where(y_true == 99, 0, y_true)
        return tf.nn.ctc_loss(labels, y_pred, lengths, times, logits_time_major=False, blank_index=5)[:, None]

    lines, characters, _ = written_lines(91)
    model = keras.Sequential(
        [
            keras.Input((12, 8)),
            keras.layers.Conv1D(8, 3, padding="same", activation="tanh"),
            keras.layers.Bidirectional(keras.layers.GRU(6, return_sequences=True)),
            keras.layers.Dense(6),
        ]
    )
    model.compile(keras.optimizers.Adam(0.02), loss=ctc_loss)
    valid = (lines[70:], characters[70:])
    history = model.fit(lines[:70], characters[:70], batch_size=16, epochs=3, validation_data=valid, verbose=0)
    falls(history)
    return outcome(model, history, one=model.predict(lines[:1], verbose=0))


@program()
def airline_passengers(keras):
    """An LSTM on windows of a series, which then forecasts step by step from its own predictions."""
    months = np.arange(120)
    series = (0.3 + 0.004 * months + 0.1 * np.sin(2 * np.pi * months / 12)).astype("float32")
    x = np.stack([series[i : i + 12] for i in range(108)])[..., None]
    y = series[12:]
    model = keras.Sequential([keras.Input((12, 1)), keras.layers.LSTM(8), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), "mean_squared_error", metrics=["mae"])
    history = model.fit(
        x[:85], y[:85], batch_size=16, epochs=4, shuffle=False, validation_data=(x[85:], y[85:]), verbose=0
    )
    falls(history)
    window, forecast = x[-1:].copy(), []
    for _ in range(4):
        following = model.predict(window, verbose=0)
        assert following.shape == (1, 1)
        forecast.append(following[0, 0])
        window = np.concatenate([window[:, 1:], following[:, None]], axis=1)
    again = model.fit(x[-7:], y[-7:], batch_size=1, epochs=1, verbose=0)
    return outcome(model, history, forecast=forecast, again=again.history["loss"])
