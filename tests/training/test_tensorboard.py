"""TensorBoard's own reader finds on the driver what Keras and tf.summary write on the workers."""

import json
import subprocess
import sys

import pytest

from spark_tensorflow_distributor import MirroredStrategyRunner


def program():
    def train():
        import os

        import numpy as np
        import tensorflow as tf

        from spark_tensorflow_distributor import get_context

        context = get_context()
        tf.keras.utils.set_random_seed(1)
        model = tf.keras.Sequential([tf.keras.layers.Input((3,)), tf.keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        x = np.arange(96, dtype="float32").reshape(32, 3) / 96
        board = tf.keras.callbacks.TensorBoard(context.log_dir, histogram_freq=1, profile_batch=(2, 3))
        history = model.fit(x, x.sum(axis=1), batch_size=8, epochs=3, callbacks=[board])
        writer = tf.summary.create_file_writer(os.path.join(context.log_dir, f"rank{context.rank}"))
        with writer.as_default():
            for step in range(1000):
                tf.summary.scalar("rank", context.rank, step)
        if context.attempt == 0:
            writer.flush()
            if context.rank == 1:
                os._exit(3)
        writer.close()
        return history.history["loss"]

    return train


READER = """
import json, sys
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.util.tensor_util import make_ndarray

board = EventMultiplexer(size_guidance={"tensors": 0, "scalars": 0}).AddRunsFromDirectory(sys.argv[1])
board.Reload()
found = {
    run: [(event.step, float(make_ndarray(event.tensor_proto))) for event in board.Tensors(run, tag)]
    for run, tag in json.loads(sys.argv[2]).items()
}
print(json.dumps(found))
"""


def test_tensorboard_shows_the_run_of_all_ranks_and_attempts(spark, tmp_path):
    runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, log_dir=tmp_path, max_restarts=1)
    losses = runner.run(program())
    assert len(runner.report.attempts) == 2
    # In a separate process, because TensorBoard imports TensorFlow, which changes the environment.
    tags = json.dumps({"train": "epoch_loss", "rank0": "rank", "rank1": "rank"})
    done = subprocess.run([sys.executable, "-c", READER, str(tmp_path), tags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout.splitlines()[-1])
    assert shown["train"] == [[epoch, pytest.approx(loss)] for epoch, loss in enumerate(losses)]
    for rank in range(2):
        # The first attempt's values are complete, although its rank 1 killed itself after writing them.
        assert len(list((tmp_path / f"rank{rank}").iterdir())) == 2
        assert shown[f"rank{rank}"][-1000:] == [[step, rank] for step in range(1000)]
    assert list((tmp_path / "train" / "plugins" / "profile").rglob("*.xplane.pb"))
