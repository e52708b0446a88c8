"""Whole runs with TensorFlow itself: N workers must train the model that one process trains."""

import os
import sys
import time

import numpy as np
import pytest

import spark_tensorflow_distributor as std
from spark_tensorflow_distributor import MirroredStrategyRunner


@pytest.fixture
def runner(spark):
    def make(num_slots=2, **options):
        options.setdefault("use_gpu", False)
        return MirroredStrategyRunner(num_slots=num_slots, spark=spark, **options)

    return make


def digits_program():
    """Return a function in the form of a 1.0.0 program; nested, so that it is pickled by value."""

    def train(optimizer="adam", epochs=3):
        import tensorflow as tf
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        images = (images / 16.0).astype("float32")[:1792]
        labels = labels[:1792]
        tf.keras.utils.set_random_seed(7)
        model = tf.keras.Sequential(
            [
                tf.keras.layers.Input((64,)),
                tf.keras.layers.Dense(32, activation="relu"),
                tf.keras.layers.Dense(10, activation="softmax"),
            ]
        )
        chosen = {"adam": tf.keras.optimizers.Adam(0.01), "sgd": tf.keras.optimizers.SGD(0.5)}[optimizer]
        model.compile(loss="sparse_categorical_crossentropy", optimizer=chosen, metrics=["accuracy"])
        data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(128)
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        history = model.fit(data.with_options(options), epochs=epochs)
        loss, accuracy = model.evaluate(data.with_options(options))
        return {
            "weights": model.get_weights(),
            "loss": history.history["loss"],
            "evaluated": (loss, accuracy),
            "replicas": tf.distribute.get_strategy().num_replicas_in_sync,
        }

    return train


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_two_workers_train_the_model_of_one(runner, optimizer):
    made = runner(2)
    two = made.run(digits_program(), optimizer=optimizer)
    for worker in made.report.workers.values():
        times = worker.times
        assert 40 <= times["steps"] <= 42 + 14  # all steps of fit and evaluate, except those that were traced
        assert 0 < times["reading"] + times["collectives"] < times["loop"] < worker.seconds["train"]
        assert times["bytes"] > 40 * 4 * 2410  # the gradients of each step
        assert len(worker.steps) == times["steps"]
    one = runner(1).run(digits_program(), optimizer=optimizer)
    assert two["replicas"] == 2
    assert one["replicas"] == 1
    for a, b in zip(one["weights"], two["weights"], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-4)
    np.testing.assert_allclose(one["evaluated"], two["evaluated"], rtol=1e-4)
    assert one["loss"][-1] < one["loss"][0] / 1.5


@pytest.mark.parametrize(
    ("env", "engine"), [({"TF_USE_LEGACY_KERAS": "1"}, "sockets"), ({}, "tensorflow")], ids=["tf_keras", "tensorflow"]
)
def test_steps_of_tf_keras_and_on_the_collectives_of_tensorflow_are_timed(spark, env, engine):
    def train():
        import time

        import tensorflow as tf

        def rows():
            for number in range(40):
                time.sleep(0.05)  # the input is slow, even compared with steps on a busy machine
                yield [float(number)] * 3, 1.0

        spec = (tf.TensorSpec((3,)), tf.TensorSpec(()))
        data = tf.data.Dataset.from_generator(rows, output_signature=spec).batch(4)
        data = data.apply(tf.data.experimental.assert_cardinality(10))
        model = tf.keras.Sequential([tf.keras.layers.Input((3,)), tf.keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(data, epochs=3, verbose=0)

    spark.conf.set("tensorflow.spark.distributor.collectives", engine)
    try:
        made = MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, env=env)
        made.run(train)
    finally:
        spark.conf.unset("tensorflow.spark.distributor.collectives")
    for worker in made.report.workers.values():
        times = worker.times
        assert 27 <= times["steps"] <= 29  # all steps except those that were traced
        assert 0.4 * times["loop"] < times["reading"] < times["loop"]
        assert ("collectives" in times) == (engine == "sockets")
        assert times.get("collectives", 1) > 0
        assert len(worker.steps) == times["steps"]


def test_a_model_can_be_returned(runner, monkeypatch):
    """The returned model needs TensorFlow on the driver, so another process loads it."""

    def train():
        import tensorflow as tf

        model = tf.keras.Sequential(
            [tf.keras.layers.Input((3,)), tf.keras.layers.BatchNormalization(), tf.keras.layers.Dense(1)]
        )
        model.compile(loss="mse", optimizer="adam", metrics=["mae"])
        x = np.arange(96, dtype="float32").reshape(32, 3)
        model.fit(x, x.sum(axis=1), batch_size=8, epochs=2)
        return model

    import pickle
    import subprocess

    from spark_tensorflow_distributor.runtime.driver import run as module

    kept = []
    monkeypatch.setattr(module, "load_result", lambda chunks: kept.append(b"".join(chunks)))
    runner(2).run(train)
    program = (
        "import pickle, sys, numpy as np\n"
        "model = pickle.load(sys.stdin.buffer)\n"
        "print(type(model).__name__, len(model.get_weights()), model.predict(np.ones((2, 3)), verbose=0).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], input=kept[0], capture_output=True)
    assert done.stdout.decode().split() == ["Sequential", "6", "(2,", "1)"], done.stderr.decode()[-2000:]
    assert pickle.dumps(kept)


def test_threads_match_the_workers_share_of_cores(runner):
    def look():
        import tensorflow as tf

        threading = tf.config.threading
        return threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads()

    cores = len(os.sched_getaffinity(0))
    made = runner(2)
    assert made.run(look) == (max(1, cores // 2), max(4, cores // 2))
    assert made.report.workers[0].threads == max(1, cores // 2)
    assert runner(2, env={"TF_NUM_INTRAOP_THREADS": "3"}).run(look)[0] == 0  # left to TensorFlow, which reads it


def test_a_custom_strategy(runner):
    def train():
        import tensorflow as tf

        assert not tf.distribute.has_strategy()
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        with strategy.scope():
            variable = tf.Variable(1.0)
        return float(strategy.run(lambda: variable + 0.0)), strategy.num_replicas_in_sync

    assert runner(2, use_custom_strategy=True).run(train) == (1.0, 2)


def test_unseeded_random_numbers_differ_between_runs_and_ranks(runner, tmp_path):
    """All trainers are forks of the same process."""

    def draw(folder):
        import tensorflow as tf

        value = float(tf.random.uniform(()))
        keras_value = float(tf.keras.random.uniform(()))
        open(f"{folder}/{std.get_context().rank}-{value}-{keras_value}", "w").close()

    for _ in range(2):
        runner(2).run(draw, folder=str(tmp_path))
    drawn = [name.split("-") for name in os.listdir(tmp_path)]
    assert len({value for _, value, _ in drawn}) == 4
    # Keras keeps the state of its generator in a variable, which the strategy mirrors: all ranks of a run agree.
    assert len({value for _, _, value in drawn}) == 2


def test_the_second_run_does_not_import_tensorflow_again(runner):
    runner(2).run(lambda: None)
    made = runner(2)
    started = time.monotonic()
    made.run(lambda: None)
    # Importing TensorFlow takes several seconds of CPU time, a fork a few hundredths of a second.
    assert made.report.workers[0].seconds["import"] < 1.5
    assert time.monotonic() - started < 20


def test_a_cold_start(spark, runner):
    spark.conf.set("tensorflow.spark.distributor.warmStart", "false")
    try:
        assert len(runner(2).run(digits_program(), epochs=1)["loss"]) == 1
    finally:
        spark.conf.unset("tensorflow.spark.distributor.warmStart")


def test_a_killed_peer_is_the_root_cause(runner):
    def train():
        import signal

        import tensorflow as tf

        strategy = tf.distribute.get_strategy()

        @tf.function
        def step():
            context = tf.distribute.get_replica_context()
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.ones(()))

        for i in range(1000):
            strategy.run(step)
            if i == 20 and std.get_context().rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(std.TrainingFailedError, match="killed by signal 9") as caught:
        runner(2).run(train)
    assert caught.value.root_cause.rank == 1


def test_progress_of_fit_reaches_the_driver(runner, capfd):
    runner(2, progress=True).run(digits_program(), epochs=2)
    shown = capfd.readouterr().err
    assert "epoch 1/2" in shown
    assert "epoch 2/2" in shown
    assert "loss=" in shown
    assert "28/28" in shown


LOCAL_PROGRAM = """
import os, sys
from spark_tensorflow_distributor import MirroredStrategyRunner, get_context
os.environ["CUDA_VISIBLE_DEVICES"] = "5"
before = dict(os.environ)
def train(x):
    import tensorflow as tf
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert get_context().world_size == 1
    os.environ["LEFT"] = "1"
    model = tf.keras.Sequential([tf.keras.layers.Input((2,)), tf.keras.layers.Dense(1)])
    model.compile(loss="mse", optimizer="sgd")
    import numpy as np
    model.fit(np.ones((8, 2)), np.ones(8), epochs=2, verbose=0)
    return os.getpid(), x, isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy)
for _ in range(2):
    pid, x, as_before = MirroredStrategyRunner(num_slots=1, local_mode=True, use_gpu=False).run(train, x=3)
    assert (pid, x) == (os.getpid(), 3)
    assert as_before
assert dict(os.environ) == before
assert "pyspark" not in sys.modules
custom = MirroredStrategyRunner(num_slots=1, local_mode=True, use_gpu=False, use_custom_strategy=True)
def bare():
    import tensorflow as tf
    return tf.distribute.has_strategy()
assert custom.run(bare) is False
try:
    custom.run(lambda: 1 / 0)
except ZeroDivisionError:
    assert dict(os.environ) == before
print("PASSED")
"""


def test_local_mode():
    import subprocess

    done = subprocess.run([sys.executable, "-c", LOCAL_PROGRAM], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["PASSED"], done.stderr


def test_a_program_in_the_form_of_1_0_0(spark):
    """The program loads a data set, uses global batches and auto-sharding, and calls fit; only its imports are new."""

    def program():
        import uuid

        import tensorflow as tf

        def load():
            (images, labels), _ = tf.keras.datasets.mnist.load_data(path=f"{uuid.uuid4()}mnist.npz")
            images = tf.cast(images[..., tf.newaxis] / 255.0, tf.float32)
            data = tf.data.Dataset.from_tensor_slices((images, tf.cast(labels, tf.int64)))
            return data.repeat().shuffle(1000).batch(64)

        def build():
            model = tf.keras.Sequential(
                [
                    tf.keras.layers.Conv2D(16, 3, activation="relu", input_shape=(28, 28, 1)),
                    tf.keras.layers.MaxPooling2D(),
                    tf.keras.layers.Flatten(),
                    tf.keras.layers.Dense(32, activation="relu"),
                    tf.keras.layers.Dense(10, activation="softmax"),
                ]
            )
            model.compile(
                loss=tf.keras.losses.sparse_categorical_crossentropy,
                optimizer=tf.keras.optimizers.SGD(learning_rate=0.1),
                metrics=["accuracy"],
            )
            return model

        data = load()
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
        data = data.with_options(options)
        model = build()
        return model.fit(x=data, epochs=3, steps_per_epoch=15).history["loss"]

    def served():
        """Run the program with real digits as its data set, repeated to the original size."""
        import tensorflow as tf
        from sklearn.datasets import load_digits

        def load_data(path):
            assert path.endswith("mnist.npz")
            images, labels = load_digits(return_X_y=True)
            images = np.kron(images.reshape(-1, 8, 8), np.ones((1, 4, 4)))[:, 2:30, 2:30] * 15.9
            return (images.astype("uint8"), labels.astype("uint8")), (images[:9], labels[:9])

        tf.keras.datasets.mnist.load_data = load_data
        return program()

    losses = MirroredStrategyRunner(num_slots=4, use_gpu=False).run(served)
    assert len(losses) == 3
    assert losses[-1] < 0.8 * losses[0], losses


def test_data_of_different_lengths_is_rejected(runner):
    def train():
        import numpy as np
        import tensorflow as tf

        from spark_tensorflow_distributor import get_context

        model = tf.keras.Sequential([tf.keras.layers.Input((2,)), tf.keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        rows = 64 if get_context().is_chief else 90
        model.fit(np.zeros((rows, 2)), np.zeros((rows, 1)), batch_size=32)

    with pytest.raises(std.DistributorError, match=r"different lengths \(rank 0: 2 batches, rank 1: 3 batches\)"):
        runner(2).run(train)


def keras_program():
    def train(program):
        import numpy as np
        import tensorflow as tf

        context = std.get_context()
        model = tf.keras.Sequential([tf.keras.layers.Input((3,)), tf.keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        x, y = np.ones((8, 3), "float32"), np.ones((8, 1), "float32")
        if program == "fit on the chief" and context.is_chief:
            model.fit(x, y, verbose=0)
        if program == "different epochs":
            model.fit(x, y, epochs=1 + context.rank, verbose=0)

    return train


@pytest.mark.parametrize(
    ("program", "texts"),
    [
        ("fit on the chief", ["Rank 1 has returned", "rank 0 is in train", "model.fit(x, y, verbose=0)"]),
        ("different epochs", ["rank 0 is in train", "rank 1 is in train", "epochs=1 + context.rank"]),
    ],
)
def test_workers_that_do_different_things_are_told(runner, program, texts):
    started = time.monotonic()
    with pytest.raises(std.TrainingFailedError, match="equally often and in the same order") as info:
        runner(2).run(keras_program(), program=program)
    assert time.monotonic() - started < 60  # without a stall_timeout
    assert all(text in str(info.value) for text in texts), str(info.value)
    assert info.value.root_cause.kind == "exception"


def listening_program():
    def train():
        import contextlib
        import os

        import numpy as np
        import tensorflow as tf

        model = tf.keras.Sequential([tf.keras.layers.Input((3,)), tf.keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(np.ones((8, 3), "float32"), np.ones((8, 1), "float32"), verbose=0)
        own, found = set(), []
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the descriptor of the listing itself
                own.add(os.readlink(f"/proc/self/fd/{fd}").strip("socket:[]"))
        for name in ("tcp", "tcp6"):
            with open(f"/proc/self/net/{name}") as file:
                fields = [line.split() for line in file.readlines()[1:]]
            found += [address for _, address, _, state, *_, inode in (each[:10] for each in fields)
                      if state == "0A" and inode in own]  # fmt: skip
        return found, std.get_context().world_size

    return train


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_port_is_open_during_training_on_cpus(spark, runner):
    assert runner(2).run(listening_program()) == ([], 2)
    settings = {"collectives": "tensorflow", "closePort": "false"}
    for name, value in settings.items():
        spark.conf.set(f"tensorflow.spark.distributor.{name}", value)
    try:
        found, _ = runner(2).run(listening_program())
    finally:
        for name in settings:
            spark.conf.unset(f"tensorflow.spark.distributor.{name}")
    assert len(found) >= 1  # shows that the test would find an open port
