"""An iterator outlives its epoch, so that nothing destroys it while its thread is fetching the next batch."""

import gc
import weakref

import pytest
import tensorflow as tf

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
    rest = iter(distributed)
    next(rest)
    strategy.release()  # reads the rest
    assert alive() == [False, False, False]
