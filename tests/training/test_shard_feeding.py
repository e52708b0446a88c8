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
from spark_tensorflow_distributor.training.replica import replica_strategy

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


@pytest.mark.parametrize("total", [9, 11])
def test_all_ranks_have_the_same_graph(total):
    """The number of rows on some ranks is divisible by the batch size."""

    def train(built):
        model, _ = built
        data = shard_data(total, 2)
        table = tf.reshape(tf.range(32.0), (32, 1))
        model.set_weights([table])
        model.fit(data, epochs=1, verbose=0)
        model.set_weights([table])
        return model.evaluate(data, verbose=0), data.element_spec[0].shape.as_list()

    found = on_replicas(2, build, train)
    assert found[0] == found[1]
    rows = np.arange(total)
    np.testing.assert_allclose(found[0][0], np.mean((0.9 * rows) ** 2), rtol=1e-5)
