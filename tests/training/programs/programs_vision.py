"""Programs with images."""

import numpy as np
from conformance.table import digits, outcome

from .table import falls, program


def images(rows):
    """Return [rows, 8, 8, 1] images of digits, and their labels."""
    x, y = digits(rows)
    return x.reshape(-1, 8, 8, 1), y


@program()
def single_rows(keras):
    """A beginner's notebook: a CNN that is trained, evaluated and used row by row."""
    x, y = images(77)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(6, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(x[:60], y[:60], batch_size=16, epochs=4, validation_data=(x[60:], y[60:]), verbose=0)
    falls(history)
    evaluated = model.evaluate(x[60:61], y[60:61], verbose=0)
    online = model.fit(x[:5], y[:5], batch_size=1, epochs=2, verbose=0)
    first = model.predict(x[:1], verbose=0)
    assert first.shape == (1, 10)
    one_by_one = [model.predict(x[i : i + 1], verbose=0)[0] for i in range(60, 64)]
    return outcome(model, history, evaluated=evaluated, online=online.history["loss"], first=first, each=one_by_one)


@program()
def unet(keras):
    """Segmentation with skip connections, IoU, and a last batch of one image."""
    layers = keras.layers
    x, _ = images(41)
    masks = (x > 0.5).astype("int32")
    noisy = (x + np.random.default_rng(3).normal(0, 0.3, x.shape)).astype("float32")

    inputs = keras.Input((8, 8, 1))
    skips, hidden = [], inputs
    for filters in (4, 8):
        hidden = layers.SeparableConv2D(filters, 3, padding="same", activation="relu")(hidden)
        skips.append(hidden)
        hidden = layers.MaxPooling2D(2)(hidden)
    hidden = layers.Conv2D(12, 3, padding="same", activation="relu")(hidden)
    for filters in (8, 4):
        hidden = layers.Conv2DTranspose(filters, 3, strides=2, padding="same", activation="relu")(hidden)
        hidden = layers.Concatenate()([hidden, skips.pop()])
    outputs = layers.Conv2D(2, 1, activation="softmax")(hidden)

    model = keras.Model(inputs, outputs)
    iou = keras.metrics.MeanIoU(2, sparse_y_true=True, sparse_y_pred=False, name="iou")
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(), metrics=["accuracy", iou])
    history = model.fit(noisy[:33], masks[:33], batch_size=8, epochs=4, verbose=0)
    falls(history)
    evaluated = model.evaluate(noisy[33:], masks[33:], batch_size=7, verbose=0)
    predicted = model.predict(noisy[33:], batch_size=7, verbose=0)
    return outcome(model, history, evaluated=evaluated, mask=predicted.argmax(-1), predicted=predicted)


@program()
def dice_loss(keras):
    """Segmentation with the loss of Kaggle's notebooks: one number for all pixels of a batch."""
    import tensorflow as tf

    def dice(y_true, y_pred):
        y_true = tf.cast(y_true, tf.float32)
        intersection = tf.reduce_sum(y_true * y_pred, axis=[1, 2, 3])
        areas = tf.reduce_sum(y_true, axis=[1, 2, 3]) + tf.reduce_sum(y_pred, axis=[1, 2, 3])
        return tf.reduce_mean((2.0 * intersection + 1.0) / (areas + 1.0))

    def bce_dice(y_true, y_pred):
        cross_entropy = keras.losses.binary_crossentropy(tf.cast(y_true, tf.float32), y_pred)
        return tf.reduce_mean(cross_entropy) + 1.0 - dice(y_true, y_pred)

    x, _ = images(75)
    masks = (x > 0.4).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(6, 3, padding="same", activation="tanh"),
            keras.layers.Conv2D(1, 1, activation="sigmoid"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.02), loss=bce_dice, metrics=[dice])
    train, valid = (x[:53], masks[:53]), (x[53:], masks[53:])
    history = model.fit(*train, batch_size=16, epochs=3, validation_data=valid, verbose=0)
    falls(history)
    return outcome(model, history, evaluated=model.evaluate(*valid, batch_size=9, verbose=0))


@program(unequal="random layers inside a model draw the same numbers for the part of each worker")
def augmentation_layers(keras):
    """Augmentation as the first layers of the model, as in the guide on image classification from scratch."""
    x, y = images(90)
    augmentation = keras.Sequential(
        [keras.layers.RandomFlip("horizontal", seed=1), keras.layers.RandomRotation(0.1, seed=2),
         keras.layers.RandomTranslation(0.1, 0.1, seed=3), keras.layers.RandomContrast(0.2, seed=4)],
        name="augmentation",
    )  # fmt: skip
    inputs = keras.Input((8, 8, 1))
    hidden = keras.layers.Rescaling(2.0, offset=-1.0)(augmentation(inputs))
    hidden = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(hidden)
    hidden = keras.layers.GlobalAveragePooling2D()(hidden)
    hidden = keras.layers.Dropout(0.2, seed=5)(hidden)
    model = keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(hidden))
    model.compile(keras.optimizers.Adam(0.03), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(x[:70], y[:70], batch_size=16, epochs=4, validation_data=(x[70:], y[70:]), verbose=0)
    falls(history)
    return outcome(model, history, predicted=model.predict(x[70:], verbose=0))


@program()
def augmentation_in_map(keras):
    """Augmentation in the input pipeline, with a separate seed for each image."""
    import tensorflow as tf

    def augment(seed, row):
        image, label = row
        seeds = tf.stack([seed, seed + 1])
        image = tf.image.stateless_random_flip_left_right(image, seed=seeds)
        image = tf.image.stateless_random_brightness(image, 0.2, seed=seeds)
        padded = tf.image.resize_with_crop_or_pad(image, 10, 10)
        return tf.image.stateless_random_crop(padded, (8, 8, 1), seed=seeds), label

    x, y = images(90)
    seeds = tf.data.Dataset.counter()
    rows = tf.data.Dataset.from_tensor_slices((x[:70], y[:70])).cache().shuffle(70, seed=9)
    train = tf.data.Dataset.zip((seeds, rows)).map(augment, num_parallel_calls=tf.data.AUTOTUNE).batch(16)
    valid = tf.data.Dataset.from_tensor_slices((x[70:], y[70:])).batch(16).cache().prefetch(tf.data.AUTOTUNE)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    history = model.fit(train.prefetch(tf.data.AUTOTUNE), epochs=3, validation_data=valid, verbose=0)
    falls(history)
    return outcome(model, history, evaluated=model.evaluate(valid, verbose=0))


@program()
def fine_tuning(keras):
    """Transfer learning: train a new head on a frozen backbone, then all of it with a second compile."""
    x, y = images(105)
    x, y, valid = x[:85], y[:85], (x[85:], y[85:])

    stem = keras.Input((8, 8, 1))
    hidden = keras.layers.Conv2D(8, 3, activation="relu")(stem)
    hidden = keras.layers.BatchNormalization()(hidden)
    hidden = keras.layers.Conv2D(8, 3, activation="tanh")(hidden)
    backbone = keras.Model(stem, keras.layers.Flatten()(hidden), name="backbone")
    statistics = np.random.default_rng(4)
    for weight in backbone.layers[2].weights[2:]:  # as if trained on other images
        weight.assign(statistics.uniform(0.1, 0.4, weight.shape))

    for layer in backbone.layers:
        layer.trainable = False
    inputs = keras.Input((8, 8, 1))
    outputs = keras.layers.Dense(10, activation="softmax")(backbone(inputs, training=False))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    frozen = [weight.copy() for weight in backbone.get_weights()]
    head = model.fit(x, y, batch_size=32, epochs=3, validation_data=valid, verbose=0)
    falls(head)
    for before, after in zip(frozen, backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)

    for layer in backbone.layers:  # batch normalisation stays frozen, as the guide on EfficientNet advises
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(x, y, batch_size=32, epochs=5, initial_epoch=3, validation_data=valid, verbose=0)
    falls(history)
    np.testing.assert_array_equal(frozen[4:6], backbone.get_weights()[4:6])
    assert not np.array_equal(frozen[0], backbone.get_weights()[0])
    return outcome(model, history, head=head.history["val_loss"], predicted=model.predict(valid[0], verbose=0))


@program()
def siamese(keras):
    """Pairs of images, one encoder for both, and a contrastive loss of the distance."""
    import tensorflow as tf

    class Distance(keras.layers.Layer):
        def call(self, inputs):
            left, right = inputs
            squares = tf.reduce_sum(tf.square(left - right), axis=1, keepdims=True)
            return tf.sqrt(tf.maximum(squares, 1e-7))

    def contrastive(margin=1.0):
        def loss(y_true, y_pred):
            apart = tf.square(tf.maximum(margin - y_pred, 0))
            return tf.reduce_mean((1 - y_true) * tf.square(y_pred) + y_true * apart)

        return loss

    x, y = digits(150)
    choice = np.random.default_rng(8).permutation(150)
    labels = (y != y[choice]).astype("float32")[:, None]
    encoder = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(4)], name="encoder"
    )
    left, right = keras.Input((64,)), keras.Input((64,))
    distance = Distance()([encoder(left), encoder(right)])
    model = keras.Model([left, right], keras.layers.Dense(1, activation="sigmoid")(distance))
    model.compile(keras.optimizers.RMSprop(0.01), contrastive(), metrics=["accuracy"])
    pairs, valid = [x[:115], x[choice][:115]], [x[115:], x[choice][115:]]
    history = model.fit(pairs, labels[:115], batch_size=24, epochs=4, validation_data=(valid, labels[115:]), verbose=0)
    falls(history)
    return outcome(model, history, predicted=model.predict(valid, verbose=0), encoded=encoder.predict(x, verbose=0))


@program()
def shared_layers(keras):
    """Nested models that share layers: a classifier and an autoencoder on one encoder, trained in turn."""
    x, y = digits(123)
    encoder = keras.Sequential([keras.Input((64,)), keras.layers.Dense(12, activation="tanh")], name="encoder")
    decoder = keras.Sequential([keras.Input((12,)), keras.layers.Dense(64, activation="sigmoid")], name="decoder")
    inputs = keras.Input((64,))
    code = encoder(inputs)
    both = keras.Model(inputs, [keras.layers.Dense(10, activation="softmax", name="digit")(code), decoder(code)])
    autoencoder = keras.Model(inputs, decoder(encoder(inputs)))
    autoencoder.compile(keras.optimizers.Adam(0.01), "mse")
    first = autoencoder.fit(x, x, batch_size=32, epochs=2, verbose=0)
    falls(first)
    both.compile(
        keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
        loss=["sparse_categorical_crossentropy", "mse"],
        loss_weights=[1.0, 5.0],
        metrics=[["accuracy"], ["mae"]],
    )
    history = both.fit(x, [y, x], batch_size=32, epochs=3, validation_split=0.2, verbose=0)
    falls(history)
    again = autoencoder.evaluate(x, x, batch_size=50, verbose=0)
    return outcome(both, history, first=first.history["loss"], again=again, code=encoder.predict(x, verbose=0))
