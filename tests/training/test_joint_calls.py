"""Calls that only some workers make: the chief may evaluate and predict by itself, but not fit."""

import time

import numpy as np
import pytest

from spark_tensorflow_distributor import MirroredStrategyRunner, TrainingFailedError

ENGINE = "tensorflow.spark.distributor.collectives"


@pytest.fixture(params=["sockets", "tensorflow"])
def runner(request, spark):
    spark.conf.set(ENGINE, request.param)
    yield MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, progress=False)
    spark.conf.unset(ENGINE)


def train(chief_calls):
    import tensorflow as tf

    from spark_tensorflow_distributor import get_context

    chief_calls = chief_calls and get_context().is_chief
    tf.keras.utils.set_random_seed(3)
    x = np.arange(120, dtype="float32").reshape(40, 3) / 60
    y = x.sum(axis=1, keepdims=True)
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Input((3,)),
            tf.keras.layers.Dense(8, activation="relu"),
            tf.keras.layers.Dropout(0.2),
            tf.keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer="adam", loss="mse", metrics=["mae"])
    found = {"predicted": []}

    class Sampler(tf.keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            found["predicted"].append(self.model.predict(x[:5], verbose=0))
            np.testing.assert_allclose(self.model.predict_on_batch(x[:5]), found["predicted"][-1], rtol=1e-5)

    model.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[Sampler()] if chief_calls else [])
    if chief_calls:
        found["sample"] = model.evaluate(x[:10], y[:10], verbose=0)
        found["alone"] = model.evaluate(tf.data.Dataset.from_tensor_slices((x, y)).batch(8), verbose=0)
    found["together"] = model.evaluate(x, y, batch_size=8, verbose=0)
    model.fit(x, y, batch_size=8, epochs=1, verbose=0)
    if chief_calls:
        found["last"] = model.predict(x, verbose=0)
    found["weights"] = model.get_weights()
    return found


def test_the_chief_evaluates_and_predicts_alone(runner):
    plain = runner.run(train, chief_calls=False)
    found = runner.run(train, chief_calls=True)
    np.testing.assert_allclose(found["alone"], found["together"], rtol=1e-5)
    np.testing.assert_allclose(found["together"], plain["together"], rtol=1e-6)
    for weights, expected in zip(found["weights"], plain["weights"], strict=True):
        np.testing.assert_array_equal(weights, expected)  # the chief's calls have changed neither state nor order
    assert [each.shape for each in found["predicted"]] == [(5, 1)] * 3
    assert found["last"].shape == (40, 1)
    assert len(found["sample"]) == 2


def test_a_fit_on_the_chief_alone_fails_within_seconds(runner):
    def fit_on_the_chief():
        import tensorflow as tf

        from spark_tensorflow_distributor import get_context

        model = tf.keras.Sequential([tf.keras.layers.Input((3,)), tf.keras.layers.Dense(1)])
        model.compile(optimizer="sgd", loss="mse")
        if get_context().is_chief:
            model.fit(np.ones((8, 3)), np.ones((8, 1)), verbose=0)

    started = time.monotonic()
    with pytest.raises(TrainingFailedError) as raised:
        runner.run(fit_on_the_chief)
    text = str(raised.value)
    assert "model.fit(np.ones((8, 3))" in text
    assert "rank 1 has returned" in text.lower()
    assert "call it on every rank, not under a condition such as `if get_context().is_chief`" in text
    assert raised.value.root_cause.error_type.endswith("OutOfStepError")
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_the_chief_alone_has_only_its_own_rows_of_a_shard(runner, spark, method):
    def call_on_the_chief(rows):
        import tensorflow as tf

        from spark_tensorflow_distributor import get_context

        model = tf.keras.Sequential([tf.keras.layers.Input((1,)), tf.keras.layers.Dense(1)])
        model.compile(optimizer="sgd", loss="mse")
        data = rows.to_tf(["a"], "b", batch_size=8, stack=True)
        if get_context().is_chief:
            getattr(model, method)(data, verbose=0)

    rows = spark.range(64).selectExpr("cast(id as float) as a", "cast(id as float) as b")
    started = time.monotonic()
    with pytest.raises(
        TrainingFailedError, match="may be called by one worker alone, and only if that worker has all rows"
    ):
        runner.run(call_on_the_chief, rows=rows)
    assert time.monotonic() - started < 60


def test_data_that_each_worker_has_as_a_whole_can_be_evaluated_by_the_chief(runner):
    def evaluate_on_the_chief():
        import tensorflow as tf

        from spark_tensorflow_distributor import get_context

        tf.keras.utils.set_random_seed(1)
        rows = np.arange(24, dtype="float32").reshape(24, 1) / 24
        policies = tf.data.experimental.AutoShardPolicy
        model = tf.keras.Sequential([tf.keras.layers.Input((1,)), tf.keras.layers.Dense(1)])
        model.compile(optimizer="sgd", loss="mse")
        data = tf.data.Dataset.from_tensor_slices((rows, rows)).batch(8)
        found = []
        for policy in (policies.DATA, policies.AUTO, policies.OFF):
            options = tf.data.Options()
            options.experimental_distribute.auto_shard_policy = policy
            if get_context().is_chief or policy == policies.OFF:  # each worker has rows of its own: all evaluate
                found.append(model.evaluate(data.with_options(options), verbose=0))
        return found

    whole, automatic, twice = runner.run(evaluate_on_the_chief)
    assert whole == automatic == pytest.approx(twice, rel=1e-5)


def models_of_the_chief(folder):
    def train():
        import os

        import tensorflow as tf

        from spark_tensorflow_distributor import get_context

        def build(seed):
            tf.keras.utils.set_random_seed(seed)
            model = tf.keras.Sequential([tf.keras.layers.Input((3,)), tf.keras.layers.Dense(1)])
            model.compile(optimizer="adam", loss="mse")
            return model

        x = np.arange(120, dtype="float32").reshape(40, 3) / 60
        y = x.sum(axis=1, keepdims=True)
        is_chief = get_context().is_chief
        if is_chief:
            probe = build(1)  # its variables have the names and shapes of the model's
            probe.save_weights(os.path.join(folder, "probe.weights.h5"))
        model = build(2)
        model.fit(x, y, batch_size=8, epochs=1, verbose=0)
        if is_chief:
            best = build(4)
            best.evaluate(x, y, verbose=0)
        model.fit(x, y, batch_size=8, epochs=1, verbose=0)
        fitted = model.get_weights()
        if is_chief:
            model.load_weights(os.path.join(folder, "probe.weights.h5"))
        loaded = model.evaluate(x, y, batch_size=8, verbose=0), model.get_weights()
        print("rank's weights:", [each.tolist() for each in (*fitted, *loaded[1])], flush=True)
        expected = probe.evaluate(x, y, batch_size=8, verbose=0) if is_chief else None
        return fitted, loaded[0], expected

    return train


def test_models_of_the_chief_alone_are_not_taken_for_those_of_all(spark, tmp_path):
    runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, progress=False)
    _, loss, expected = runner.run(models_of_the_chief(str(tmp_path)))
    weights = [
        line.split("weights: ")[1]
        for worker in runner.report.workers.values()
        for line in worker.log_tail
        if "rank's weights" in line
    ]
    assert len(weights) == 2
    assert weights[0] == weights[1]
    assert loss == pytest.approx(expected, rel=1e-6)


def previewed():
    def train():
        import tensorflow as tf

        from spark_tensorflow_distributor import get_context

        rows = tf.data.Dataset.from_tensor_slices((np.arange(400.0).reshape(400, 1), np.arange(400.0)))
        model = tf.keras.Sequential([tf.keras.layers.Input((1,)), tf.keras.layers.Dense(1)])
        model.compile(optimizer="sgd", loss="mse")
        model.evaluate(rows.shuffle(400).batch(40), verbose=0)
        if get_context().is_chief:
            next(iter(rows.shuffle(400)))  # takes a seed that the other ranks take for the next order
        print("after the preview", flush=True)
        model.fit(rows.shuffle(400).batch(40), epochs=1, verbose=0)

    return train


def test_batches_that_differ_between_workers_are_a_warning(spark):
    runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, progress=False)
    runner.run(previewed())
    before, _, after = "\n".join(runner.report.workers[0].log_tail).partition("after the preview")
    assert "global batches differ" not in before
    assert "global batches differ: ranks 0 and 1 do not have the same rows" in after
