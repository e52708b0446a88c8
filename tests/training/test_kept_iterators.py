"""An iterator outlives its epoch, so that nothing destroys it while its thread is fetching the next batch."""

import gc
import time
import weakref

import pytest
import tensorflow as tf

from helpers import wait_until
from spark_tensorflow_distributor.training.kept_iterators import LocalStrategy


@pytest.mark.parametrize("way", ["dataset", "function"])
def test_the_last_two_iterators_live_until_the_end_of_the_run(way, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    strategy, dataset = LocalStrategy(), tf.data.Dataset.range(4).batch(2)
    if way == "dataset":
        distributed = strategy.experimental_distribute_dataset(dataset)
    else:
        distributed = strategy.distribute_datasets_from_function(lambda context: dataset)

    def read():
        iterator = iter(distributed)
        assert [batch.numpy().tolist() for batch in iterator] == [[0, 1], [2, 3]]
        return weakref.ref(iterator)

    def alive():
        gc.collect()
        return [each() is not None for each in iterators]

    iterators = [read() for _ in range(3)]
    assert alive() == [False, True, True]
    strategy.release()
    assert alive() == [False, False, False]
    if way == "dataset":  # such as that of a model that the run has returned
        distributed = strategy.experimental_distribute_dataset(dataset)
    else:
        distributed = strategy.distribute_datasets_from_function(lambda context: dataset)
    iterators = [read()]
    assert alive() == [False]


def test_no_batch_is_read_at_the_end_of_the_run(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    read = []
    strategy = LocalStrategy()
    dataset = tf.data.Dataset.range(100).map(lambda number: tf.numpy_function(_recorded(read), [number], tf.int64))
    iterator = iter(strategy.experimental_distribute_dataset(dataset.batch(1)))
    next(iterator)
    del iterator
    wait_until(lambda: len(read) > 1)
    time.sleep(1)  # until nothing more is read in advance
    in_advance = len(read)
    strategy.release()
    time.sleep(1)
    assert len(read) == in_advance < 50


def _recorded(read):
    def record(number):
        read.append(number)
        return number

    return record
