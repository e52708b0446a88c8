"""Data of which each worker has rows of its own: the end of an epoch, class weights, and a guessed batch size."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

sys.path.append(str(Path(__file__).parent))

from in_process import on_replicas

BATCH, ROWS = 12, 48
POLICIES = tf.data.experimental.AutoShardPolicy
X = np.random.default_rng(0).normal(size=(ROWS, 3)).astype("float32")
Y = (X[:, :1] > 0).astype("int32")


def build():
    tf.keras.utils.set_random_seed(1)
    model = tf.keras.Sequential([tf.keras.Input((3,)), tf.keras.layers.Dense(1)])
    # The last number of a schedule shows how many steps the optimizer has counted.
    model.compile(tf.keras.optimizers.SGD(tf.keras.optimizers.schedules.ExponentialDecay(0.1, 4, 0.5)), "mse")
    return model


def position():
    """Return this replica's rank, and the number of replicas."""
    if not tf.distribute.has_strategy():
        return 0, 1
    collectives = tf.distribute.get_strategy().collectives
    return collectives.rank, collectives.world_size


def with_policy(data, policy):
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = policy
    return data.with_options(options)


def rows_of_rank(rank, size):
    return tf.data.Dataset.from_tensor_slices((X[rank::size], Y[rank::size]))


def fit(data, **arguments):
    def train(model):
        history = model.fit(data(*position()), epochs=3, verbose=0, **arguments).history["loss"]
        return [
            int(model.optimizer.iterations),
            *history,
            *np.concatenate([each.ravel() for each in model.get_weights()]),
        ]

    return train


def off(transform):
    return lambda rank, size: with_policy(transform(rows_of_rank(rank, size).batch(BATCH)), POLICIES.OFF)


def unknown(data):
    return data.filter(lambda *_: True)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    ("data", "arguments", "iterations"),
    [
        (off(lambda data: data), {}, 12),
        (off(unknown), {}, 15),
        (off(lambda data: unknown(data).repeat()), {"steps_per_epoch": 3}, 9),
        (off(lambda data: unknown(data).repeat(2)), {"steps_per_epoch": 3}, 9),
        (off(unknown), {"steps_per_epoch": 3}, 8),
        (off(lambda data: data), {"steps_per_epoch": 3}, 7),
        # For class weights, Keras derives a dataset from the worker's own.
        (off(lambda data: data), {"class_weight": {0: 1.0, 1: 3.0}}, 12),
        (off(unknown), {"class_weight": {0: 1.0, 1: 3.0}}, 15),
    ],
)
def test_an_epoch_ends_as_in_one_process(data, arguments, iterations):
    (single,) = on_replicas(0, build, fit(data, **arguments))
    assert single[0] == iterations
    for found in on_replicas(2, build, fit(data, **arguments)):
        np.testing.assert_allclose(found, single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("has_length", [False, True])
def test_files_of_their_own(has_length, tmp_path):
    for number in range(2):
        np.savetxt(tmp_path / f"{number}.csv", np.hstack([X, Y])[number::2], delimiter=",", fmt="%.9g")

    def data(rank, size):
        def parse(line):
            numbers = tf.ensure_shape(tf.strings.to_number(tf.strings.split(line, ",")), [4])
            return numbers[:3], numbers[3:]

        names = tf.data.Dataset.from_tensor_slices([str(tmp_path / f"{number}.csv") for number in range(2)])
        batches = names.interleave(tf.data.TextLineDataset, cycle_length=2).map(parse).batch(BATCH)
        if has_length:
            batches = batches.apply(tf.data.experimental.assert_cardinality(ROWS // BATCH))
        return with_policy(batches, POLICIES.FILE)

    (single,) = on_replicas(0, build, fit(data))
    assert single[0] == (12 if has_length else 15)
    for found in on_replicas(2, build, fit(data)):
        np.testing.assert_allclose(found, single, rtol=1e-4, atol=1e-5)


def generated(rank, size, rows=ROWS):
    batches = rows_of_rank(rank, size).take(rows).batch(BATCH)
    return tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=batches.element_spec)


@pytest.mark.parametrize(
    ("data", "warns"),
    [
        (lambda rank, size: generated(rank, size, 5), True),
        (
            lambda rank, size: (
                rows_of_rank(rank, size)
                .take(5)
                .window(BATCH)
                .flat_map(lambda x, y: tf.data.Dataset.zip((x.batch(BATCH), y.batch(BATCH))))
            ),
            True,
        ),
        (generated, False),
        (lambda rank, size: generated(rank, size, 20 if rank else 5), False),
        (lambda rank, size: rows_of_rank(rank, size).take(5).batch(BATCH), False),
        (lambda rank, size: rows_of_rank(rank, size).take(5).batch(BATCH).map(lambda x, y: (2 * x, y)), False),
    ],
    ids=["generator", "window", "full batches", "one full batch", "batch", "batch and map"],
)
def test_a_guessed_batch_size_is_a_warning_of_the_chief(data, warns, caplog):
    on_replicas(2, build, fit(lambda rank, size: with_policy(data(rank, size), POLICIES.OFF)))
    found = [each.getMessage() for each in caplog.records if "nothing else shows the batch size" in each.getMessage()]
    assert len(found) == warns
    assert not found or "taken to be 5" in found[0]
