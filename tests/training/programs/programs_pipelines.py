"""Input pipelines of tf.data: files read in turns, padded batches, generators, zipped weights, caches, downloads."""

import hashlib
import os
from pathlib import Path

import numpy as np
from conformance.table import digits, outcome, wait_for_all

from .table import program


def folder():
    """Return a folder that all ranks of the group share."""
    return Path(os.environ["CONFORMANCE_FOLDER"])


def own_folder(name):
    """Return a new folder of this process alone, like the temporary folder of a notebook."""
    path = folder() / f"{name}-{os.getpid()}"
    path.mkdir()
    return path


def image_model(keras):
    """Return a compiled CNN for digits."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


@program()
def records_in_turns(keras):
    """TFRecords of Examples in several files, interleaved, parsed, shuffled with a seed, cached and batched."""
    import tensorflow as tf

    x, y = digits(331)
    here = own_folder("records")
    for shard in range(5):
        with tf.io.TFRecordWriter(str(here / f"train-{shard}.tfrecord")) as writer:
            for pixels, label in zip(x[shard:270:5], y[shard:270:5], strict=True):
                image = tf.train.Feature(float_list=tf.train.FloatList(value=pixels))
                number = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
                features = tf.train.Features(feature={"image": image, "label": number})
                writer.write(tf.train.Example(features=features).SerializeToString())

    def parse(record):
        row = tf.io.parse_single_example(
            record, {"image": tf.io.FixedLenFeature([64], tf.float32), "label": tf.io.FixedLenFeature([], tf.int64)}
        )
        return tf.reshape(row["image"], (8, 8, 1)), row["label"]

    files = tf.data.Dataset.list_files(str(here / "train-*.tfrecord"), shuffle=False)
    data = (
        files.interleave(tf.data.TFRecordDataset, cycle_length=3, block_length=2, num_parallel_calls=2)
        .map(parse, num_parallel_calls=tf.data.AUTOTUNE)
        .cache()
        .shuffle(100, seed=4, reshuffle_each_iteration=True)
        .batch(44)
        .prefetch(tf.data.AUTOTUNE)
    )
    model = image_model(keras)
    history = model.fit(data, epochs=4, validation_data=(x[270:].reshape(-1, 8, 8, 1), y[270:]), verbose=0)
    return outcome(model, history)


@program()
def padded_batches_of_a_generator(keras):
    """Point sets of different sizes come from a generator; padding is masked by hand."""
    import tensorflow as tf

    random = np.random.default_rng(6)
    sets, labels = [], []
    for _ in range(350):
        label = int(random.integers(0, 3))
        sets.append(random.normal(label - 1, 0.8, (int(random.integers(3, 10)), 2)).astype("float32"))
        labels.append(label)

    def rows(start, stop):
        yield from zip(sets[start:stop], labels[start:stop], strict=True)

    signature = (tf.TensorSpec((None, 2), tf.float32), tf.TensorSpec((), tf.int32))
    train = tf.data.Dataset.from_generator(rows, args=(0, 270), output_signature=signature)
    valid = tf.data.Dataset.from_generator(rows, args=(270, 350), output_signature=signature)
    train = train.padded_batch(40, padded_shapes=((None, 2), ()), padding_values=(-99.0, 0))
    valid = valid.padded_batch(40, padding_values=(-99.0, 0))

    class MaskedMean(keras.layers.Layer):
        def call(self, hidden, points):
            there = tf.cast(points[..., :1] > -90.0, tf.float32)
            return tf.reduce_sum(hidden * there, axis=1) / tf.reduce_sum(there, axis=1)

    points = keras.Input((None, 2))
    hidden = keras.layers.Dense(12, activation="relu")(points)
    hidden = MaskedMean()(hidden, points)
    model = keras.Model(points, keras.layers.Dense(3, activation="softmax")(hidden))
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(train, epochs=4, validation_data=valid, verbose=0)
    return outcome(model, history, evaluated=model.evaluate(valid, verbose=0))


@program()
def zipped_rows_and_weights(keras):
    """Images, labels and weights are zipped; augmentation draws by a seed for each row."""
    import tensorflow as tf

    x, y = digits(390)
    images = tf.data.Dataset.from_tensor_slices(x[:310].reshape(-1, 8, 8, 1))
    labels = tf.data.Dataset.from_tensor_slices(y[:310])
    weights = tf.data.Dataset.from_tensor_slices(np.where(y[:310] == 8, 3.0, 1.0).astype("float32"))
    seeds = tf.data.Dataset.random(seed=8).batch(2).map(lambda pair: tf.cast(pair % 2**31, tf.int32))

    def augment(image, label, weight, seed):
        image = tf.image.stateless_random_brightness(image, 0.2, seed)
        image = tf.image.stateless_random_crop(tf.pad(image, [[1, 1], [1, 1], [0, 0]]), (8, 8, 1), seed)
        return image, label, weight

    train = tf.data.Dataset.zip((images, labels, weights, seeds)).map(augment).batch(38)
    model = image_model(keras)
    model.compile(model.optimizer, model.loss, weighted_metrics=["accuracy"])
    valid = (x[310:].reshape(-1, 8, 8, 1), y[310:], np.ones(80, "float32"))
    history = model.fit(train, epochs=3, validation_data=valid, verbose=0)
    return outcome(model, history)


@program()
def downloaded_file(keras):
    """``get_file`` fetches an archive into a cache that all ranks share, checks its hash, and all ranks read it."""
    x, y = digits(340)
    here = folder()
    (here / "cache").mkdir(exist_ok=True)  # if this folder does not exist, get_file uses another one
    source = here / "source" / "digits.npz"
    if not source.exists():
        source.parent.mkdir(exist_ok=True)
        temporary = source.with_suffix(f".{os.getpid()}")
        with temporary.open("wb") as file:
            np.savez(file, x=x, y=y)
        temporary.rename(source)
    wait_for_all()
    digest = hashlib.sha256(source.read_bytes()).hexdigest()

    path = keras.utils.get_file(
        "digits.npz", origin=source.as_uri(), file_hash=digest, cache_dir=str(here / "cache"), cache_subdir="sets"
    )
    with np.load(path) as arrays:
        x, y = arrays["x"].reshape(-1, 8, 8, 1), arrays["y"]
    model = image_model(keras)
    history = model.fit(x[:280], y[:280], batch_size=50, epochs=3, validation_data=(x[280:], y[280:]), verbose=0)
    return outcome(model, history, files=len(list((here / "cache" / "sets").iterdir())))


@program()
def csv_files(keras):
    """``make_csv_dataset`` over two files, with defaults for missing values and a seeded shuffle."""
    import tensorflow as tf

    random = np.random.default_rng(14)
    here = own_folder("csv")
    for part in range(2):
        with (here / f"part-{part}.csv").open("w") as file:
            file.write("bed,bath,area,kind,price\n")
            for _ in range(130):
                bed, bath, area = random.integers(1, 6), random.integers(1, 4), random.uniform(0.3, 2.0)
                kind = random.choice(["house", "flat", ""])
                price = bed * 0.3 + bath * 0.2 + area + 0.5 * (kind == "house")
                file.write(f"{bed},{bath},{area:.4f},{kind},{price:.4f}\n")

    data = tf.data.experimental.make_csv_dataset(
        str(here / "part-*.csv"),
        batch_size=35,
        column_defaults=[0.0, 0.0, 0.0, "unknown", 0.0],
        label_name="price",
        num_epochs=1,
        shuffle=True,
        shuffle_buffer_size=64,
        shuffle_seed=2,
    )
    kinds = keras.layers.StringLookup(vocabulary=["house", "flat", "unknown"], output_mode="one_hot")

    def encode(columns, price):
        numbers = tf.stack([columns["bed"], columns["bath"], columns["area"]], axis=-1)
        return tf.concat([numbers, tf.cast(kinds(columns["kind"]), tf.float32)], axis=-1), price

    model = keras.Sequential([keras.Input((7,)), keras.layers.Dense(10, activation="relu"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.02), "mae", metrics=["mse"])
    data = data.map(encode)
    history = model.fit(data, epochs=4, verbose=0)
    return outcome(model, history, evaluated=model.evaluate(data.take(3), verbose=0))


@program()
def folders_of_images(keras):
    """``image_dataset_from_directory`` with a split for validation, a rescaling layer, and a mapped augmentation."""
    import tensorflow as tf

    x, y = digits(240)
    here = own_folder("images")
    for i, (pixels, label) in enumerate(zip(x, y, strict=True)):
        target = here / f"class_{label % 4}"
        target.mkdir(exist_ok=True)
        png = tf.io.encode_png(tf.cast(pixels.reshape(8, 8, 1) * 255, tf.uint8)).numpy()
        (target / f"{i:04}.png").write_bytes(png)

    settings = {
        "validation_split": 0.25,
        "seed": 123,
        "image_size": (10, 10),
        "batch_size": 32,
        "color_mode": "grayscale",
        "verbose": False,
    }
    if keras.Model.__module__.startswith("tf_keras"):
        settings.pop("verbose")
    train = keras.utils.image_dataset_from_directory(str(here), subset="training", **settings)
    valid = keras.utils.image_dataset_from_directory(str(here), subset="validation", **settings)
    classes = train.class_names
    train = train.map(lambda image, label: (tf.image.adjust_contrast(image, 1.2), label)).prefetch(2)
    model = keras.Sequential(
        [
            keras.Input((10, 10, 1)),
            keras.layers.Rescaling(1.0 / 255),
            keras.layers.SeparableConv2D(8, 3, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(len(classes), activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(train, validation_data=valid, epochs=4, verbose=0)
    return outcome(model, history, classes=len(classes), predicted=model.predict(valid, verbose=0))


@program()
def endless_mixture(keras):
    """Two repeated sources are mixed by weights and cut into epochs by ``steps_per_epoch``."""
    import tensorflow as tf

    x, y = digits(360)
    x = x.reshape(-1, 8, 8, 1)
    even, odd = y[:300] % 2 == 0, y[:300] % 2 == 1

    def source(chosen, seed):
        rows = tf.data.Dataset.from_tensor_slices((x[:300][chosen], y[:300][chosen]))
        return rows.shuffle(200, seed=seed).repeat()

    data = tf.data.Dataset.sample_from_datasets([source(even, 1), source(odd, 2)], weights=[0.3, 0.7], seed=3)
    valid = tf.data.Dataset.from_tensor_slices((x[300:], y[300:])).batch(29).repeat()
    model = image_model(keras)
    history = model.fit(
        data.batch(41), steps_per_epoch=6, epochs=4, validation_data=valid, validation_steps=2, verbose=0
    )
    return outcome(model, history, predicted=model.predict(valid, steps=2, verbose=0))
