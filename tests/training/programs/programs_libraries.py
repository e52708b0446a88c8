"""Programs that use libraries on top of Keras, each of which is in the table if its library is installed.

KerasTuner (``keras-tuner``), KerasHub (``keras-hub``) and TensorFlow Probability (``tensorflow-probability``).
"""

import os
from importlib.util import find_spec

import numpy as np
from conformance.table import digits, outcome

from .table import program

# Programs that are not in the table, with the reasons.
LEFT_OUT: dict[str, str] = {}


def optional_program(library, **kwargs):
    """Add a function to the table if its library is installed; otherwise record why it is missing."""
    if find_spec(library) is not None:
        return program(**kwargs)

    def leave_out(run):
        LEFT_OUT[run.__name__] = f"{library.replace('_', '-')} is not installed"
        return run

    return leave_out


@optional_program("keras_tuner", keras_3_only=True)
def tuner_with_two_trials(keras):
    """A random search over width and rate in a shared folder; the best trial's values train the final model."""
    import keras_tuner

    x, y = digits(400)

    def build_model(hp):
        model = keras.Sequential([keras.Input((64,))])
        for i in range(hp.Int("layers", 1, 2)):
            model.add(keras.layers.Dense(hp.Int(f"units_{i}", 8, 24, step=8), activation="relu"))
        model.add(keras.layers.Dense(10, activation="softmax"))
        rate = hp.Float("rate", 1e-3, 3e-2, sampling="log")
        model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    tuner = keras_tuner.RandomSearch(
        build_model,
        objective="val_loss",
        max_trials=2,
        seed=31,
        overwrite=True,
        directory=os.environ["CONFORMANCE_FOLDER"],
        project_name="digits",
    )
    data = {"validation_data": (x[300:], y[300:]), "batch_size": 45, "verbose": 0}
    tuner.search(x[:300], y[:300], epochs=2, **data)
    scores = [trial.score for trial in tuner.oracle.get_best_trials(2)]
    best = tuner.get_best_hyperparameters(1)[0]
    model = tuner.hypermodel.build(best)
    history = model.fit(x[:300], y[:300], epochs=3, **data)
    return outcome(model, history, scores=scores, rate=best.get("rate"), layers=best.get("layers"))


@optional_program("keras_hub", keras_3_only=True)
def small_gpt(keras):
    """A decoder of KerasHub's layers learns the next token; perplexity ignores the padding."""
    import keras_hub
    import tensorflow as tf

    random = np.random.default_rng(23)
    length, words = 12, 24
    starts = random.integers(1, words, 260)
    tokens = 1 + (starts[:, None] + 3 * np.arange(length + 1)[None]) % (words - 1)
    for row, stop in enumerate(random.integers(6, length + 1, len(tokens))):
        tokens[row, stop:] = 0
    tokens = tokens.astype("int32")

    data = tf.data.Dataset.from_tensor_slices(tokens).map(lambda row: (row[:-1], row[1:]))
    train, valid = data.take(200).batch(36), data.skip(200).batch(36)
    inputs = keras.Input((None,), dtype="int32")
    hidden = keras_hub.layers.TokenAndPositionEmbedding(words, length, 12, mask_zero=True)(inputs)
    for _ in range(2):
        hidden = keras_hub.layers.TransformerDecoder(num_heads=2, intermediate_dim=24)(hidden)
    model = keras.Model(inputs, keras.layers.Dense(words)(hidden))
    model.compile(
        optimizer=keras.optimizers.Adam(0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras_hub.metrics.Perplexity(from_logits=True, mask_token_id=0)],
    )
    history = model.fit(train, validation_data=valid, epochs=3, verbose=0)
    return outcome(model, history)


@optional_program("keras_hub", keras_3_only=True)
def small_bert(keras):
    """A classifier on a small BERT backbone, trained from scratch on tokens of a custom vocabulary."""
    import keras_hub

    random = np.random.default_rng(37)
    good, bad, filler = ["great", "fine"], ["weak", "dull"], ["the", "plot", "was", "a", "long"]
    labels = random.integers(0, 2, 190)
    texts = [
        " ".join([*random.choice(filler, random.integers(2, 6)), random.choice(good if label else bad)])
        for label in labels
    ]
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=16, num_layers=1, num_heads=2, hidden_dim=16, intermediate_dim=32, max_sequence_length=10,
        dropout=0.0,
    )  # fmt: skip
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *good, *bad, *filler]
    ids = {word: i for i, word in enumerate(words)}
    tokens = np.zeros((len(texts), 10), "int32")
    for row, text in enumerate(texts):
        sentence = [ids["[CLS]"], *(ids[word] for word in text.split()), ids["[SEP]"]]
        tokens[row, : len(sentence)] = sentence
    x = {"token_ids": tokens, "segment_ids": np.zeros_like(tokens), "padding_mask": tokens > 0}
    model = keras_hub.models.BertTextClassifier(backbone=backbone, num_classes=2, dropout=0.0, preprocessor=None)
    model.compile(
        optimizer=keras.optimizers.AdamW(0.02),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["sparse_categorical_accuracy"],
    )
    train, valid = ({name: values[part] for name, values in x.items()} for part in (slice(150), slice(150, None)))
    history = model.fit(train, labels[:150], batch_size=32, epochs=4, validation_data=(valid, labels[150:]), verbose=0)
    return outcome(model, history)


def probabilistic_program(run):
    """Add a function to tf_keras' table if TensorFlow Probability, which uses tf_keras' layers, is installed."""
    from .table import PROGRAMS

    added = optional_program("tensorflow_probability")(run)
    if run.__name__ in PROGRAMS:
        import dataclasses

        PROGRAMS[run.__name__] = dataclasses.replace(PROGRAMS[run.__name__], packages=("tf_keras",))
    return added


@probabilistic_program
def probabilistic_regression(keras):
    """The last layer is a distribution with its own deviation; the loss is the negative log-likelihood."""
    import tensorflow as tf
    import tensorflow_probability as tfp

    random = np.random.default_rng(41)
    x = random.uniform(-1, 1, (310, 1)).astype("float32")
    y = (2 * x + 0.3 * np.abs(x) * random.normal(size=x.shape)).astype("float32")
    model = keras.Sequential(
        [
            keras.layers.Dense(8, activation="relu", input_shape=(1,)),
            keras.layers.Dense(2),
            tfp.layers.DistributionLambda(
                lambda t: tfp.distributions.Normal(loc=t[..., :1], scale=1e-3 + tf.math.softplus(0.5 * t[..., 1:])),
                convert_to_tensor_fn=tfp.distributions.Distribution.mean,
            ),
        ]
    )
    model.compile(keras.optimizers.Adam(0.02), loss=lambda y, distribution: -distribution.log_prob(y), metrics=["mae"])
    history = model.fit(x[:250], y[:250], batch_size=48, epochs=4, validation_data=(x[250:], y[250:]), verbose=0)
    predicted = model(tf.constant(x[:9]))
    return outcome(model, history, mean=predicted.mean(), deviation=predicted.stddev())
