"""Keras on shards whose rows do not divide evenly, in threads of one process."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

sys.path.append(str(Path(__file__).parent))

from in_process import on_replicas

from spark_tensorflow_distributor.data.dataset import build_dataset
from spark_tensorflow_distributor.data.passes import PassOrder
from spark_tensorflow_distributor.data.shard import DataShard, ShardId
from spark_tensorflow_distributor.training.part_data import has_equal_batches
from spark_tensorflow_distributor.training.replica import replica_strategy
from spark_tensorflow_distributor.training.shard_feeding import _is_endless

keras = pytest.importorskip("keras")


def shard_data(total, batch, *, shuffle=True):
    """Return the dataset of this replica's shard of the rows ``0 .. total``: each row, and a tenth of it as a label."""
    collectives = replica_strategy().collectives
    size, rank = collectives.world_size, collectives.rank
    ids = np.arange(rank, total, size)
    layout = SimpleNamespace(
        name="data", schema={}, frame=SimpleNamespace(rows=len(ids)), facts=SimpleNamespace(rows=total)
    )
    state = DataShard(layout, None, ShardId(rank, size, rank, 1))._new_state(batch, drop_remainder=False)
    components = [
        lambda rows: tf.reshape(tf.gather(ids, rows), (-1, 1)),
        lambda rows: tf.reshape(tf.cast(tf.gather(ids, rows), tf.float32) / 10, (-1, 1)),
    ]
    order = PassOrder(len(ids), 1, rank) if shuffle else None
    return build_dataset(components, lambda rows: rows, state, order, repeat=False)


class Noted(keras.layers.Layer):
    """Passes its input on, and keeps each batch."""

    def __init__(self, seen):
        super().__init__()
        self._note = lambda ids: seen.append(ids.ravel().tolist()) or ids

    def call(self, inputs):
        return tf.ensure_shape(tf.numpy_function(self._note, [inputs], inputs.dtype), inputs.shape)

    def compute_output_shape(self, shape):
        return shape


def build():
    """Return a model with an embedding, whose gradients are sparse, and the batches that it sees."""
    seen = []
    inputs = keras.Input((1,), dtype="int64")
    outputs = keras.layers.Flatten()(keras.layers.Embedding(32, 1, "zeros")(Noted(seen)(inputs)))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    seen.clear()
    return model, seen


def sizes(seen):
    found = [len(ids) for ids in seen]
    seen.clear()
    return found


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_repeated_shard_has_no_step_without_rows(shuffle):
    def train(built):
        model, seen = built
        history = model.fit(shard_data(9, 4, shuffle=shuffle).repeat(), steps_per_epoch=3, epochs=2, verbose=0)
        return sizes(seen), history.history["loss"]

    (first, losses), (second, _) = on_replicas(2, build, train)
    assert first == second == [2] * 6
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(("total", "batch"), [(9, 2), (9, 4), (11, 4)])
def test_evaluation_reads_every_row_inside_fit_too(total, batch):
    """The number of rows on some ranks may divide evenly; all ranks need the same graph nevertheless."""

    def train(built):
        model, seen = built
        data, epochs = shard_data(total, batch), []

        class Evaluate(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                epochs.append(list(seen))
                seen.clear()
                loss = self.model.evaluate(data, verbose=0)
                epochs.append([list(seen), loss, self.model.get_weights()[0]])
                seen.clear()

        model.fit(data, epochs=2, verbose=0, callbacks=[Evaluate()])
        return epochs, data.element_spec[0].shape.as_list()

    (first, shape), (second, other_shape) = on_replicas(2, build, train)
    assert shape == other_shape
    for number in (0, 2):
        assert [len(ids) for ids in first[number]] == [len(ids) for ids in second[number]]
        evaluated = [ids for found in (first, second) for batch in found[number + 1][0] for ids in batch]
        assert sorted(evaluated) == list(range(total))
        assert all(map(len, first[number + 1][0] + second[number + 1][0]))
        _, loss, table = first[number + 1]
        np.testing.assert_allclose(loss, np.mean((table[:total, 0] - np.arange(total) / 10) ** 2), rtol=1e-5)


def test_batches_are_equal_only_if_nothing_changes_their_rows():
    def find(_):
        data, collectives = shard_data(24, 8), replica_strategy().collectives
        uneven = shard_data(22, 8)
        uneven.shard_state.fit = uneven.shard_state.new_fit(uneven.shard_state.equal, range(1), 3, None)
        datasets = {
            "static": data,
            "static, filtered, repeated": data.filter(lambda x, y: x[0, 0] > 3).repeat(),
            "static, filtered": data.filter(lambda x, y: x[0, 0] > 3),
            "static, masked": data.map(lambda x, y: (x[x[:, 0] > 3], y)),
            "fit": uneven,
            "fit, repeated": uneven.repeat().prefetch(2),
            "fit, filtered, repeated": uneven.filter(lambda x, y: x[0, 0] > 3).repeat(),
            "fit, masked": uneven.map(lambda x, y: (x[x[:, 0] > 3], y)),
        }
        return [name for name, each in datasets.items() if has_equal_batches(each, collectives)]

    wanted = ["static", "static, filtered, repeated", "fit", "fit, repeated"]
    assert on_replicas(2, lambda: None, find) == [wanted] * 2


def test_only_datasets_without_an_end_are_endless():
    def find(_):
        data = shard_data(9, 4)
        return [
            _is_endless(each)
            for each in (
                data,
                data.filter(lambda x, y: True),
                data.repeat().take(3),
                data.repeat(),
                data.repeat().filter(lambda x, y: True).map(lambda x, y: x),
            )
        ]

    assert on_replicas(2, lambda: None, find) == [[False, False, False, True, True]] * 2
