"""``predict`` returns outputs of every type for all rows, on every worker."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

sys.path.append(str(Path(__file__).parent))

from in_process import on_replicas

from spark_tensorflow_distributor import DataError

OUTPUTS = {
    "strings": lambda x: tf.strings.as_string(x[:, 0]),
    "strings of any bytes": lambda x: tf.where(x > 0, tf.constant(b"\0\xff\0"), ""),
    "ragged strings": lambda x: tf.strings.bytes_split(tf.strings.as_string(x[:, 0])),
    "ragged": lambda x: tf.RaggedTensor.from_tensor(x, padding=0.0),
    "sparse": lambda x: tf.sparse.from_dense(tf.nn.relu(x)),
    "booleans": lambda x: x > 0,
    "complex": lambda x: tf.complex(x, -x),
    "unsigned": lambda x: tf.cast(tf.abs(x) * 100, tf.uint64),
}
ROWS = np.random.default_rng(0).normal(size=(7, 3)).astype("float32")


class Model(tf.keras.Model):
    def __init__(self, output):
        super().__init__()
        self.output_of = output

    def call(self, inputs):
        return self.output_of(inputs)


def listed(output):
    if isinstance(output, tf.SparseTensor):
        return tf.sparse.to_dense(output).numpy().tolist()
    return output.to_list() if isinstance(output, tf.RaggedTensor) else np.asarray(output).tolist()


@pytest.mark.parametrize("replicas", [2, 3])
@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_those_of_one_process(name, replicas):
    def predict(model):
        return model.predict(ROWS, batch_size=4, verbose=0)

    (single,) = on_replicas(0, lambda: Model(OUTPUTS[name]), predict)
    for found in on_replicas(replicas, lambda: Model(OUTPUTS[name]), predict, "sockets"):
        assert type(found) is type(single)
        assert found.dtype == single.dtype
        assert listed(found) == listed(single)


@pytest.mark.parametrize("name", ["strings", "ragged", "sparse"])
def test_a_worker_without_rows_left_adds_none(name):
    def predict(model):
        rank = tf.distribute.get_strategy().collectives.rank
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        data = tf.data.Dataset.from_tensor_slices(ROWS[:5] if rank == 0 else ROWS[5:]).batch(4)
        return model.predict(data.with_options(options), verbose=0)

    (expected,) = on_replicas(0, lambda: Model(OUTPUTS[name]), lambda model: model(ROWS[[0, 1, 5, 6, 2, 3, 4]]))
    for found in on_replicas(2, lambda: Model(OUTPUTS[name]), predict):
        assert listed(found) == listed(expected)


def test_an_output_that_cannot_be_combined_is_an_error():
    model = Model(lambda x: tf.RaggedTensor.from_tensor(x)._to_variant(batched_input=True))
    with pytest.raises(DataError, match="cannot exchange a tensor of type variant"):
        on_replicas(2, lambda: model, lambda model: model.predict(ROWS, verbose=0))
