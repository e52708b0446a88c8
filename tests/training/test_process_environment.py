"""How TensorFlow configures a trainer's process, and what a user sees of this."""

import subprocess
import sys
import time

import numpy as np
import pytest

from spark_tensorflow_distributor import MirroredStrategyRunner, RendezvousTimeoutError


@pytest.fixture
def runner(spark):
    def make(**options):
        return MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, progress=False, **options)

    return make


def ordinary_program():
    def train():
        import multiprocessing

        import tensorflow as tf

        def fitted(strategy):
            with strategy.scope():
                tf.keras.utils.set_random_seed(5)
                model = tf.keras.Sequential([tf.keras.layers.Input((3,)), tf.keras.layers.Dense(1)])
                model.compile(optimizer="sgd", loss="mse")
            x = np.arange(48, dtype="float32").reshape(16, 3) / 48
            model.fit(tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(8), epochs=2)
            return model.get_weights()

        with multiprocessing.get_context("fork").Pool(2) as pool:
            doubled = pool.map(abs, [-1, -2])
        strategies = [tf.distribute.MirroredStrategy(), tf.distribute.MultiWorkerMirroredStrategy()]
        replicas = [strategy.num_replicas_in_sync for strategy in strategies]
        return doubled, replicas, [fitted(strategy) for strategy in [*strategies, tf.distribute.get_strategy()]]

    return train


def test_pools_strategies_and_datasets_of_an_ordinary_program(runner, capfd):
    made = runner()
    doubled, replicas, weights = made.run(ordinary_program())
    assert doubled == [1, 2]
    assert replicas == [2, 2]
    for each in weights[1:]:
        np.testing.assert_array_equal(each[0], weights[0][0])
    warnings = "\n".join(made.report.workers[0].warnings)
    assert "creates a MirroredStrategy. It gets the strategy of all workers instead" in warnings
    assert "creates a MultiWorkerMirroredStrategy" in warnings
    assert not made.report.workers[1].warnings
    captured = capfd.readouterr()
    shown = captured.out + captured.err
    assert "Epoch 2/2" in shown
    for noise in ("shuffle", "absl::InitializeLog", "oneDNN", "cuda", "GeneratorDataset", "cpu_feature_guard"):
        assert noise not in shown


def test_log_to_driver_false_is_quiet_in_local_mode(runner, capfd):
    def talk():
        import os

        import tensorflow  # noqa: F401

        print("spoken aloud", flush=True)
        os.write(2, b"written aloud\n")
        return 3

    made = runner(log_to_driver=False)
    assert made.run(talk) == 3
    captured = capfd.readouterr()
    assert "aloud" not in captured.out + captured.err
    assert set(made.report.workers[0].log_tail) == {"spoken aloud", "written aloud"}


def test_start_timeout_covers_the_programs_own_strategy(runner):
    def train():
        import json
        import os
        import time

        import tensorflow as tf

        if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 1:
            time.sleep(600)
        tf.distribute.MultiWorkerMirroredStrategy()

    started = time.monotonic()
    with pytest.raises(RendezvousTimeoutError, match=r"start_timeout=15 s: nothing accepts connections at rank 1 \("):
        runner(use_custom_strategy=True, start_timeout=15).run(train)
    assert time.monotonic() - started < 120


def test_proxies_do_not_come_between_the_workers(runner):
    def train():
        import os

        import tensorflow as tf

        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        return strategy.num_replicas_in_sync, os.environ["http_proxy"]

    proxies = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), "http://192.0.2.1:3128")  # leads nowhere
    assert runner(use_custom_strategy=True, start_timeout=60, env=proxies).run(train) == (2, proxies["http_proxy"])


def training_program():
    def train(rows):
        import sys

        import tensorflow as tf

        model = tf.keras.Sequential([tf.keras.layers.Input((1,)), tf.keras.layers.Dense(1)])
        model.compile(optimizer="adam", loss="mse")
        model.fit(rows.to_tf(["x"], "y", batch_size=4, stack=True), epochs=2, verbose=0)
        model.evaluate(rows.to_tf(["x"], "y", batch_size=4, stack=True), verbose=0)
        model.predict(np.ones((4, 1)), verbose=0)
        return list(sys.modules)

    return train


def test_the_fork_server_has_imported_what_trainers_import(spark, runner):
    code = (
        "import sys; from spark_tensorflow_distributor.runtime.trainer import forkserver, preload; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rows = spark.range(16).selectExpr("cast(id as float) / 16 as x", "cast(id as float) as y")
    used = runner().run(training_program(), rows=rows)
    own = {name for name in used if name.startswith("spark_tensorflow_distributor")}
    assert "spark_tensorflow_distributor.training.replica_hooks" in own
    assert own - set(done.stdout.split()) == set()
