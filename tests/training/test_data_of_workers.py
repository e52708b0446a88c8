"""Data that differs between workers, and models that cannot compute a part of a batch."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

from mwms import run_group

from spark_tensorflow_distributor import DataError
from spark_tensorflow_distributor.errors import ConfigurationError

BATCH = 12


def rows(count, first=0):
    x = np.random.RandomState(3).uniform(-1, 1, (300, 5)).astype("float32")[first : first + count]
    return x, (x @ np.arange(5.0)[:, None]).astype("float32")


def regression(keras):
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.05), "mse", metrics=["mae"])
    return model


def own_rows(strategy, counts, policy):
    """Train on different rows on each worker, and on a different number of them."""
    import tensorflow as tf

    with strategy.scope():
        model = regression(tf.keras)
    rank = strategy.cluster_resolver.task_id
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = getattr(tf.data.experimental.AutoShardPolicy, policy)
    data = tf.data.Dataset.from_tensor_slices(rows(counts[rank], 100 * rank)).batch(BATCH).with_options(options)
    history = model.fit(data, epochs=3, verbose=0)
    return {"weights": model.get_weights(), "loss": history.history["loss"], "mae": history.history["mae"]}


def own_files(strategy, folder):
    """Train on files that TensorFlow deals out alternately to two workers; batches are made of rows, or of lines."""
    import tensorflow as tf

    def parse(lines):
        numbers = tf.strings.to_number(tf.strings.split(lines, ","))
        numbers = numbers.to_tensor() if isinstance(numbers, tf.RaggedTensor) else numbers
        return tf.ensure_shape(numbers[..., :5], (*lines.shape, 5)), tf.ensure_shape(
            numbers[..., 5:], (*lines.shape, 1)
        )

    lines = tf.data.TextLineDataset([f"{folder}/{number}.csv" for number in range(4)])
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.FILE
    found = {}
    for name, data in (("rows", lines.map(parse).batch(BATCH)), ("lines", lines.batch(BATCH).map(parse))):
        with strategy.scope():
            model = regression(tf.keras)
        history = model.fit(data.with_options(options), epochs=3, verbose=0)
        found[name] = {"weights": model.get_weights(), **{key: history.history[key] for key in ("loss", "mae")}}
    return found


def merged(strategy, counts, has_length=True):
    """Train on the rows of all workers in one process, in the same global batches, whose number Keras may know."""
    import tensorflow as tf

    part = -(-BATCH // len(counts))
    batches, sources = [], [rows(count, 100 * rank) for rank, count in enumerate(counts)]
    for start in range(0, max(counts), part):
        pieces = [tuple(each[start : start + part] for each in source) for source in sources]
        batches.append(tuple(np.concatenate(each) for each in zip(*pieces, strict=True)))
    model = regression(tf.keras)
    data = tf.data.Dataset.from_generator(
        lambda: iter(batches), output_signature=(tf.TensorSpec((None, 5)), tf.TensorSpec((None, 1)))
    )
    if has_length:
        data = data.apply(tf.data.experimental.assert_cardinality(len(batches)))
    history = model.fit(data, epochs=3, verbose=0)
    return {"weights": model.get_weights(), "loss": history.history["loss"], "mae": history.history["mae"]}


@pytest.mark.parametrize("counts", [[30, 30], [30, 17], [5, 30, 12]])
def test_workers_with_rows_of_their_own_train_on_all_of_them(counts):
    (single,) = run_group("test_data_of_workers:merged", workers=1, counts=counts)
    for found in run_group("test_data_of_workers:own_rows", workers=len(counts), counts=counts, policy="OFF"):
        for name in ("weights", "loss", "mae"):
            for value, expected in zip(found[name], single[name], strict=True):
                np.testing.assert_allclose(value, expected, rtol=2e-4, atol=2e-5)


def test_workers_with_files_of_their_own_train_on_all_of_them(tmp_path):
    counts = [30, 17]
    for rank, count in enumerate(counts):
        table = np.concatenate(rows(count, 100 * rank), axis=1)
        for number, part in ((rank, table[:10]), (rank + 2, table[10:])):
            np.savetxt(tmp_path / f"{number}.csv", part, delimiter=",", fmt="%.9g")
    (single,) = run_group("test_data_of_workers:merged", workers=1, counts=counts, has_length=False)
    for of_worker in run_group("test_data_of_workers:own_files", workers=2, folder=str(tmp_path)):
        for found in (of_worker["rows"], of_worker["lines"]):
            for name in ("weights", "loss", "mae"):
                for value, expected in zip(found[name], single[name], strict=True):
                    np.testing.assert_allclose(value, expected, rtol=2e-4, atol=2e-5)


def generators(strategy, counts):
    """Train on a generator that should yield the same rows on all workers; return the error."""
    import tensorflow as tf

    with strategy.scope():
        model = regression(tf.keras)
    x, y = rows(counts[strategy.cluster_resolver.task_id])
    signature = tf.TensorSpec((5,)), tf.TensorSpec((1,))
    data = tf.data.Dataset.from_generator(lambda: zip(x, y, strict=True), output_signature=signature).batch(BATCH)
    with pytest.raises(DataError) as error:
        model.fit(data, verbose=0)
    return {"error": str(error.value)}


def test_generators_of_different_lengths_are_an_error_on_all_workers():
    for found in run_group("test_data_of_workers:generators", workers=2, counts=[60, 30]):
        assert "The data of rank 1 ended after 3 steps, but that of other ranks did not." in found["error"]
        assert "AutoShardPolicy.OFF" in found["error"]


def fixed_batch(strategy):
    """Train a stateful RNN, which has a fixed batch size; return the error."""
    import tensorflow as tf

    with strategy.scope():
        layers = tf.keras.layers
        model = tf.keras.Sequential(
            [tf.keras.Input(batch_shape=(BATCH, 3, 5)), layers.LSTM(4, stateful=True), layers.Dense(1)]
        )
        model.compile("sgd", "mse")
    x, y = np.zeros((24, 3, 5), "float32"), np.zeros((24, 1), "float32")
    with pytest.raises(ConfigurationError) as error:
        model.fit(x, y, batch_size=BATCH, verbose=0)
    return {"error": str(error.value)}


def test_a_fixed_batch_size_is_refused_with_advice():
    for found in run_group("test_data_of_workers:fixed_batch", workers=2):
        assert "fixed batch size of 12" in found["error"]
        assert "num_slots=1" in found["error"]
