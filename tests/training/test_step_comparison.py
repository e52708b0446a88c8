"""``compare_step`` finds the programs that several workers train differently, and leaves a model as it was."""

import numpy as np
import pytest

from spark_tensorflow_distributor import DistributorError, MirroredStrategyRunner, compare_step

ROWS = 33


def compare_models():
    """Return the comparison of each model by name, and the messages of refused calls."""
    import tensorflow as tf

    from spark_tensorflow_distributor import ConfigurationError, compare_step, get_context

    keras = tf.keras
    layers = keras.layers
    x = np.random.default_rng(0).normal(size=(ROWS, 4)).astype("float32")
    y = x.sum(axis=1, keepdims=True)

    def model_of(*inner, loss="mse"):
        model = keras.Sequential([keras.Input((4,)), *inner, layers.Dense(1)])
        model.compile(keras.optimizers.Adam(0.1), loss, metrics=["mae"])
        return model

    class Stepping(keras.Model):
        def __init__(self, update):
            super().__init__()
            self.head, self.update = keras.Sequential([keras.Input((4,)), layers.Dense(1)]), update
            self.built = True

        def call(self, features):
            return self.head(features)

        def train_step(self, data):
            features, labels = data[:2]
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self(features) - labels) ** 2)
            self.update(self, tape.gradient(loss, self.trainable_variables))
            return {"loss": loss}

    class TwoOptimizers(Stepping):
        def compile(self, first, second):
            super().compile(first)
            self.second = second

    def stepping(update, cls=Stepping, *optimizers):
        model = cls(update)
        model.compile(*(optimizers or ["sgd"]))
        return model

    def apply(model, gradients):
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    def apply_both(model, gradients):
        kernel, bias = model.trainable_variables
        model.optimizer.apply_gradients([(gradients[0], kernel)])
        model.second.apply_gradients([(gradients[1], bias)])

    def apply_clipped(model, gradients):
        apply(model, tf.clip_by_global_norm(gradients, 0.1)[0])

    models = {
        "dense": model_of(layers.Dense(8, activation="relu")),
        "dropout": model_of(layers.Dense(8, activation="relu"), layers.Dropout(0.3, seed=3)),
        "synchronized": model_of(layers.BatchNormalization(synchronized=True)),
        "declared_sum": model_of(loss=keras.losses.MeanSquaredError(reduction="sum")),
        "own_step": stepping(apply),
        "two_optimizers": stepping(apply_both, TwoOptimizers, keras.optimizers.SGD(), keras.optimizers.Adam()),
        "batch_normalization": model_of(layers.BatchNormalization()),
        "sum": model_of(loss=lambda true, found: tf.reduce_sum((true - found) ** 2) / ROWS),
        "root": model_of(loss=lambda true, found: tf.sqrt(tf.reduce_mean((true - found) ** 2))),
        "pairs": model_of(loss=lambda true, found: tf.reduce_mean((true - found[:, 0]) ** 2)),
        "masked": model_of(loss=lambda true, found: tf.reduce_sum(tf.nn.relu(true - found)) / _positive(true)),
        "clipped": stepping(apply_clipped),
    }
    refused = {}
    unbuilt = keras.Sequential([layers.Dense(1)])
    unbuilt.compile("sgd", "mse")
    calls = {
        "not compiled": lambda: compare_step(keras.Sequential([keras.Input((4,)), layers.Dense(1)]), x, y),
        "not built": lambda: compare_step(unbuilt, x, y),
        "different batches": lambda: compare_step(models["dense"], x + get_context().rank, y),
    }
    for name, call in calls.items():
        try:
            call()
        except ConfigurationError as error:
            refused[name] = str(error)
    if keras.__name__.startswith("tf_keras"):
        models = {name: models[name] for name in sorted(TF_KERAS)}
    return {name: compare_step(model, x, y) for name, model in models.items()}, refused


def _positive(true):
    import tensorflow as tf

    return tf.reduce_sum(tf.cast(true > 0, tf.float32))


EQUAL = {"dense", "dropout", "synchronized", "declared_sum", "own_step", "two_optimizers"}
# A selection, because each model is traced twice.
TF_KERAS = {"dropout", "two_optimizers", "batch_normalization", "sum", "clipped"}


@pytest.fixture(params=["keras", "tf_keras"])
def environment(request):
    return {"TF_USE_LEGACY_KERAS": "1"} if request.param == "tf_keras" else {}


def test_programs_that_several_workers_train_differently_are_found(spark, environment):
    runner = MirroredStrategyRunner(num_slots=3, use_gpu=False, spark=spark, progress=False, env=environment)
    found, refused = runner.run(compare_models)
    equal = {name for name, each in found.items() if each.is_equal}
    assert equal == EQUAL & found.keys(), {name: str(each) for name, each in found.items()}
    assert len(found) == (len(TF_KERAS) if environment else 12)
    assert "synchronized=True (batch_normalization" in str(found["batch_normalization"])
    assert "all gradients are about 1/3 of those in one process" in str(found["sum"])
    alone, together = found["sum"].logs["loss"]
    assert together == pytest.approx(alone / 3)
    assert len(found["two_optimizers"].gradients) == 2
    assert "Call model.compile first" in refused["not compiled"]
    assert "Create its first layer with an Input" in refused["not built"]
    assert "different batches" in refused["different batches"]


def train(compares):
    import tensorflow as tf

    from spark_tensorflow_distributor import compare_step

    keras = tf.keras
    keras.utils.set_random_seed(5)
    x = np.random.default_rng(0).normal(size=(ROWS, 4)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    dropout = keras.layers.Dropout(0.3, seed=3)
    hidden = [keras.layers.Dense(8, activation="relu"), dropout, keras.layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((4,)), *hidden, keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.1), "mse", metrics=["mae"])
    losses = []
    for _ in range(3):
        if compares:
            compare_step(model, x, y)
        losses += model.fit(x, y, batch_size=8, epochs=1, verbose=0).history["loss"]
    return losses, model.get_weights()


def test_a_comparison_changes_nothing(spark, environment):
    runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, progress=False, env=environment)
    (losses, weights), (expected_losses, expected) = (runner.run(train, compares=each) for each in (True, False))
    assert losses == expected_losses
    for found, value in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(found, value)


def test_one_worker_is_equal_to_itself(spark):
    def compare():
        import tensorflow as tf

        from spark_tensorflow_distributor import compare_step

        model = tf.keras.Sequential([tf.keras.Input((4,)), tf.keras.layers.BatchNormalization()])
        model.compile("sgd", "mse")
        return compare_step(model, np.ones((6, 4), "float32"), np.ones((6, 4), "float32"))

    comparison = MirroredStrategyRunner(num_slots=1, use_gpu=False, spark=spark, progress=False).run(compare)
    assert comparison.is_equal
    assert str(comparison).startswith("A step on 1 worker has the gradients and logs of one process")


def test_outside_of_a_training_function_it_says_so():
    with pytest.raises(DistributorError, match="works only inside a training function"):
        compare_step(None, np.ones((2, 1)))
