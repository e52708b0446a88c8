"""Random small trainings compute the same numbers on several replicas as in one process."""

import functools
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, example, given, settings

sys.path.append(str(Path(__file__).parent))

from in_process import OutOfStep, on_replicas
from random_draws import trainings
from random_models import Training, build, run

from spark_tensorflow_distributor.training.own_rows import (
    _OWN_ROWS,
    CERTAIN,
    GUESSED,
    LIKELY,
    _batch_size,
    _known_batch_size,
    own_rows,
)

# How many trainings are drawn. The usual number takes about a minute and always draws the same trainings; any other
# number from the environment draws different ones each time.
_USUAL = 20
EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", _USUAL))
ROWS = tf.data.Dataset.range(5)


def differences(training: Training, engine: str = "memory") -> list[str]:
    """Return the differences between one process and any of the replicas."""
    model, train = functools.partial(build, training), functools.partial(run, training)
    (single,) = on_replicas(0, model, train)
    replicas = on_replicas(training.replicas, model, train, engine)
    found = []
    for rank, result in enumerate(replicas):
        assert result.keys() == single.keys(), set(result) ^ set(single)
        for name, expected in single.items():
            value = result[name]
            tolerance = 2e-5 + 1e-4 * np.abs(expected).max(initial=0)
            if value.shape != expected.shape or not np.allclose(value, expected, rtol=1e-4, atol=tolerance):
                found.append(f"{name}, rank {rank}: one process {expected}, {training.replicas} replicas {value}")
    return found


@pytest.mark.timeout(120 + 20 * EXAMPLES)
@settings(
    max_examples=EXAMPLES,
    derandomize=EXAMPLES == _USUAL,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(training=trainings())
# Every replica has the whole batch, whose sparse gradient must count once.
@example(Training(replicas=3, batch=1, rows=1, inputs="words", layers=("average",), optimizer="Adam"))
@example(Training(batch=4, rows=5, inputs="words", layers=("average",), options=(("clipnorm", 0.1),), eager=False))
# Each replica has one row.
@example(Training(rows=2, layers=("noise",)))
@example(Training(rows=2, inputs="series", layers=("spatial dropout", "flatten")))
# The second replica's rows do not fill a batch, and it runs out of them before the first one.
@example(Training(batch=3, rows=9, data="own rows", layers=("batch norm",)))
@example(Training(batch=7, rows=16, replicas=3, data="own rows", layers=("dense", "batch norm")))
@example(Training(batch=3, rows=9, data="own rows", inputs="words", layers=("average",), optimizer="Adam"))
# In a graph, Keras counts the step in which data of unknown length ends.
@example(Training(batch=3, rows=9, data="own rows of unknown length", eager=False, epochs=2))
# No replica's rows fill a batch.
@example(Training(batch=3, rows=3, data="own rows"))
@example(Training(batch=9, rows=7, replicas=3, data="own rows", epochs=2))
# In validation, the replicas have two rows and one row of a batch. In a graph that knows these numbers, Keras weights a
# single output's loss by them; evaluate, where each replica has one row, must not reuse this graph.
@example(Training(eager=False, second_output=True, validation_rows=6, data="dataset", then="evaluate"))
def test_a_training_computes_the_same_on_several_replicas(training):
    assert not differences(training)


@pytest.mark.timeout(120 + 10 * EXAMPLES)
@settings(
    max_examples=EXAMPLES // 5 or 1,
    derandomize=EXAMPLES == _USUAL,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(training=trainings())
def test_a_training_computes_the_same_over_sockets(training):
    assert not differences(training, "sockets")


@pytest.mark.xfail(
    reason="Only a graph shows that no row chooses which positions are looked up. Eagerly, "
    "gradients of the replicas stay side by side, and Adam squares each of them."
)
def test_positions_are_looked_up_once_in_eager_mode():
    training = Training(rows=8, inputs="series", layers=("positions", "average"), optimizer="Adam")
    assert not differences(training)


def test_the_same_lookup_in_a_graph():
    training = Training(rows=8, inputs="series", layers=("positions", "average"), optimizer="Adam", eager=False)
    assert not differences(training)


def test_a_wrong_batch_fraction_is_noticed(monkeypatch):
    """The property test must fail if replicas are wrong: here, each one counts equally, however many rows it has."""
    from spark_tensorflow_distributor.training.replica_step import ReplicaStep

    monkeypatch.setattr(ReplicaStep, "_compute_batch_fraction", lambda step: tf.constant(1 / step.replicas))
    assert not differences(Training(batch=4, rows=4))
    assert differences(Training(batch=3, rows=3))


def halved(row):
    return row[::2]


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (ROWS.batch(8), (8, CERTAIN)),
        (ROWS.batch(8, num_parallel_calls=2).cache().shuffle(2).shard(1, 0).repeat(2).skip(1).take(3), (8, CERTAIN)),
        (ROWS.padded_batch(8).filter(lambda row: True).prefetch(1), (8, CERTAIN)),
        (ROWS.take(0).batch(8), (8, CERTAIN)),
        (ROWS.batch(4).map(halved).cache().prefetch(1), (2, CERTAIN)),
        (ROWS.batch(2).map(halved, num_parallel_calls=2).shuffle(3), (1, LIKELY)),
        (ROWS.batch(2).map(lambda row: tf.repeat(row, 3)), (6, CERTAIN)),
        # The only batch is a remainder. Whether the function keeps the number of rows cannot be known.
        (ROWS.batch(8).map(halved), (8, LIKELY)),
        (ROWS.batch(8).map(lambda row: tf.repeat(row, 3)), (15, GUESSED)),
        (ROWS.batch(4).map(halved).skip(1), (4, LIKELY)),
        (ROWS.batch(2).map(halved).repeat(), (1, LIKELY)),
        (ROWS.take(0).batch(8).map(halved), (8, LIKELY)),
        # TensorFlow keeps no size.
        (ROWS.batch(8).rebatch(2), (2, LIKELY)),
        (ROWS.batch(2).rebatch(8), (5, GUESSED)),
        (ROWS.batch(8).unbatch().batch(3, drop_remainder=True), (3, CERTAIN)),
    ],
)
def test_the_batch_size_of_a_workers_own_rows(data, found):
    known = _known_batch_size(data)  # then, no worker reads its data
    assert ((known, CERTAIN) if known else _batch_size(data)) == found


def test_a_worker_that_is_certain_of_the_batch_size_decides_it():
    def sizes(rank):
        data = tf.data.Dataset.range(8 if rank else 16).batch(8).map(lambda row: row[:4])
        return [len(each) for each in own_rows(data, _collectives()).as_numpy_iterator()]

    assert on_replicas(2, lambda: _collectives().rank, sizes) == [[2, 2, 2, 2], [2, 2]]
    few = tf.data.Dataset.range(5).batch(8).map(lambda row: row * 2)
    assert on_replicas(2, lambda: few, lambda data: len(list(own_rows(data, _collectives())))) == [2, 2]


def test_the_first_error_of_a_replica_ends_the_group():
    def fail(rank):
        if rank == 1:
            raise ValueError("the labels are missing")
        _collectives().wait()

    with pytest.raises(ValueError, match="the labels are missing"):
        on_replicas(3, lambda: _collectives().rank, fail)


@pytest.mark.parametrize(
    "loss",
    [
        tf.keras.losses.MeanSquaredError(reduction="sum"),
        lambda y, predicted: tf.reduce_mean(tf.square(y - predicted)),  # not a number without rows
    ],
)
def test_a_replica_without_rows_adds_nothing_to_an_evaluation(loss):
    """The second replica's shard is smaller, so its last batch is empty."""
    x = np.arange(10, dtype="float32").reshape(5, 2)
    batches = {0: [x[:1], x[2:3], x[4:]], 1: [x[1:2], x[3:4], x[5:]]}

    def build():
        model = tf.keras.Sequential([tf.keras.Input((2,)), tf.keras.layers.Dense(1, kernel_initializer="ones")])
        model.compile(loss=loss)
        return model

    def evaluate(model):
        strategy = tf.distribute.get_strategy()
        whole = [x[:2], x[2:4], x[4:]]
        own = batches[strategy.collectives.rank] if tf.distribute.has_strategy() else whole
        signature = (tf.TensorSpec((None, 2)), tf.TensorSpec((None, 2)))
        data = tf.data.Dataset.from_generator(lambda: iter([(each, each) for each in own]), output_signature=signature)
        setattr(data, _OWN_ROWS, True)
        return model.evaluate(data, verbose=0)

    (single,) = on_replicas(0, build, evaluate)
    np.testing.assert_allclose(on_replicas(2, build, evaluate), [single] * 2, rtol=1e-5)


def test_each_function_of_a_loop_begins_with_the_variables_of_the_chief():
    """AutoGraph wraps both functions in one with the same code."""

    def train(strategy):
        variables = []
        for step in (lambda: variables[0].read_value(), lambda: variables[1].read_value()):
            variables.append(tf.Variable(1.0 + strategy.collectives.rank))
            strategy.run(step)
        return [float(each) for each in variables]

    assert on_replicas(2, tf.distribute.get_strategy, train) == [[1.0, 1.0]] * 2


@pytest.mark.parametrize("in_graph", [False, True])
def test_replicas_that_call_different_collectives_do_not_hang(in_graph):
    def call(rank):
        group = _collectives()
        function = (lambda: group.all_reduce(tf.ones(2))) if rank else (lambda: group.all_gather(tf.ones(2)))
        return (tf.function(function) if in_graph else function)()

    with pytest.raises(OutOfStep):
        on_replicas(2, lambda: _collectives().rank, call)


def test_a_replica_that_makes_one_call_more_does_not_hang():
    def call(rank):
        if rank:
            _collectives().wait()

    with pytest.raises(OutOfStep):
        on_replicas(2, lambda: _collectives().rank, call)


def _collectives():
    return tf.distribute.get_strategy().collectives
