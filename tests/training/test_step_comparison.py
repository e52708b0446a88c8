"""``compare_step`` finds the programs that several workers train differently, and leaves a model as it was."""

import numpy as np
import pytest

from spark_tensorflow_distributor import DistributorError, MirroredStrategyRunner, compare_step

ROWS = 33


def data():
    x = np.random.default_rng(0).normal(size=(ROWS, 4))  # float64, which fit converts to float32
    return x, x.sum(axis=1, keepdims=True)


def models(keras):
    """Return compiled models by name."""
    import tensorflow as tf

    layers = keras.layers

    def model_of(*inner, loss="mse", **arguments):
        model = keras.Sequential([keras.Input((4,)), *inner, layers.Dense(1)])
        model.compile(keras.optimizers.Adam(0.1), loss, metrics=["mae"], **arguments)
        return model

    class Stepping(keras.Model):  # without a call method
        def __init__(self, update):
            super().__init__()
            self.head, self.update = keras.Sequential([keras.Input((4,)), layers.Dense(1)]), update
            self.annealed = tf.Variable(0.0, trainable=False)

        def train_step(self, data):
            x, y = data
            self.annealed.assign_add(1.0)
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self.head(x) - y) ** 2) * self.annealed
            self.update(self, tape.gradient(loss, self.head.trainable_variables))
            return {"loss": loss}

    def stepping(update):
        model = Stepping(update)
        model.compile("sgd")
        return model

    def apply(model, gradients):
        model.optimizer.apply_gradients(zip(gradients, model.head.trainable_variables, strict=True))

    def apply_both(model, gradients):
        for name, gradient, variable in zip("ab", gradients, model.head.trainable_variables, strict=True):
            model.optimizers_by_name[name].apply_gradients([(gradient, variable)])

    def apply_clipped(model, gradients):
        apply(model, tf.clip_by_global_norm(gradients, 0.1)[0])

    def assign(model, gradients):
        for gradient, variable in zip(gradients, model.head.trainable_variables, strict=True):
            variable.assign_sub(0.1 * gradient)

    two_optimizers = stepping(apply_both)
    two_optimizers.optimizers_by_name = {"a": keras.optimizers.SGD(), "b": keras.optimizers.Adam()}
    frozen = layers.BatchNormalization()
    frozen.trainable = False
    made = {
        "dense": model_of(layers.Dense(8, activation="relu")),
        "dropout": model_of(layers.Dense(8, activation="relu"), layers.Dropout(0.3), steps_per_execution=2),
        "synchronized": model_of(layers.BatchNormalization(synchronized=True)),
        "frozen": model_of(frozen),
        "declared_sum": model_of(loss=keras.losses.MeanSquaredError(reduction="sum")),
        "own_step": stepping(tf.function(apply)),
        "two_optimizers": two_optimizers,
        "batch_normalization": model_of(layers.BatchNormalization()),
        "sum": model_of(loss=lambda true, found: tf.reduce_sum((true - found) ** 2) / ROWS),
        "root": model_of(loss=lambda true, found: tf.sqrt(tf.reduce_mean((true - found) ** 2))),
        "pairs": model_of(loss=lambda true, found: tf.reduce_mean((true - found[:, 0]) ** 2)),
        "clipped": stepping(apply_clipped),
        "assigned": stepping(assign),
    }
    if keras.Model.__module__.startswith("tf_keras"):
        made["legacy_optimizer"] = model_of()
        made["legacy_optimizer"].compile(keras.optimizers.legacy.Adam(0.1, global_clipnorm=1.0), "mse")
    return made


EQUAL = {"dense", "dropout", "synchronized", "frozen", "declared_sum", "own_step", "two_optimizers"}
EQUAL |= {"legacy_optimizer"}


def compare_models():
    """Return the comparison of each model by name, and the messages of refused calls."""
    import tensorflow as tf

    from spark_tensorflow_distributor import ConfigurationError, compare_step, get_context

    keras, rank = tf.keras, get_context().rank
    x, y = data()
    made = models(keras)
    if rank == 0:
        made["dense"].set_weights([value + 1 for value in made["dense"].get_weights()])
    found = {name: compare_step(model, x, y) for name, model in made.items()}
    unbuilt = keras.Sequential([keras.layers.Dense(1)])
    unbuilt.compile("sgd", "mse")

    class PartlyBuilt(keras.Model):
        def __init__(self):
            super().__init__()
            self.body = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
            self.head = keras.layers.Dense(1)

        def call(self, inputs):
            return self.head(self.body(inputs))

    partly_built = PartlyBuilt()
    partly_built.compile("sgd", "mse")
    calls = {
        "partly built": lambda: compare_step(partly_built, x, y),
        "not compiled": lambda: compare_step(keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]), x, y),
        "not built": lambda: compare_step(unbuilt, x, y),
        "different batches": lambda: compare_step(made["dense"], x + rank, y),
        "few rows": lambda: compare_step(made["dense"], x[:2], y[:2]),
        "a dataset": lambda: compare_step(made["dense"], tf.data.Dataset.from_tensor_slices((x, y)).batch(8)),
        "not a model": lambda: compare_step(None, x, y),
    }
    refused = {}
    for name, call in calls.items():
        try:
            call()
        except ConfigurationError as error:
            refused[name] = str(error)
    return found, refused


@pytest.fixture(params=["keras", "tf_keras"])
def environment(request):
    return {"TF_USE_LEGACY_KERAS": "1"} if request.param == "tf_keras" else {}


def test_programs_that_several_workers_train_differently_are_found(spark, environment):
    runner = MirroredStrategyRunner(num_slots=3, use_gpu=False, spark=spark, progress=False, env=environment)
    found, refused = runner.run(compare_models)
    equal = {name for name, each in found.items() if each.is_equal}
    assert equal == EQUAL & found.keys(), {name: str(each) for name, each in found.items()}
    assert len(found) == 13 + len(environment)
    assert "synchronized=True (batch_normalization" in str(found["batch_normalization"])
    assert found["frozen"].causes == ()
    assert "all gradients are about 1/3 of those in one process" in str(found["sum"])
    alone, together = found["sum"].logs["loss"]
    assert together == pytest.approx(alone / 3)
    assert len(found["two_optimizers"].differences) == 2
    if not environment:
        assert list(found["two_optimizers"].differences)[1].endswith("for optimizer 2")
    assert all(name.startswith("the change of") for name in found["assigned"].differences)
    assert "Call model.compile first" in refused["not compiled"]
    assert "Create its first layer with an Input" in refused["not built"]
    assert "all of whose variables exist" in refused["partly built"]
    assert "passed different batches" in refused["different batches"]
    assert "a batch of 2 rows for 3 workers" in refused["few rows"]
    assert "one batch, not a" in refused["a dataset"]
    assert "needs a Keras model" in refused["not a model"]


def train(compares):
    import tensorflow as tf

    from spark_tensorflow_distributor import compare_step, get_context

    keras = tf.keras
    keras.utils.set_random_seed(5)
    x, y = data()
    inner = [keras.layers.Dense(8, activation="relu"), keras.layers.Dropout(0.3, seed=3)]
    inner.append(keras.layers.BatchNormalization())
    model = keras.Sequential([keras.Input((4,)), *inner, keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.1), "mse", metrics=["mae"])
    made = models(keras)
    own, dense = made["own_step"], made.get("legacy_optimizer", made["dense"])

    class Comparing(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if compares:
                compare_step(self.model, x, y)

    losses = []
    for _ in range(2):
        for each in (model, own):
            if compares:
                compare_step(each, x, y)
            losses += each.fit(x, y, batch_size=11, epochs=1, verbose=0, callbacks=[Comparing()]).history["loss"]
    if compares:
        compare_step(dense, x, y)
    if get_context().is_chief:
        dense.set_weights([value + 1 for value in dense.get_weights()])
    losses.append(np.ravel(dense.train_on_batch(x, y))[0])  # synchronises the weights, because it is the first call
    weights = [each for trained in (model, own.head, dense) for each in trained.get_weights()]
    return losses, [*weights, own.annealed.numpy()]


def test_a_comparison_changes_nothing(spark, environment):
    runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, progress=False, env=environment)
    (losses, weights), (expected_losses, expected) = (runner.run(train, compares=each) for each in (True, False))
    assert losses == expected_losses
    for found, value in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(found, value)


def test_one_worker_is_one_process(spark):
    def compare():
        return compare_step(None, np.ones((2, 1)))

    comparison = MirroredStrategyRunner(num_slots=1, use_gpu=False, spark=spark, progress=False).run(compare)
    assert comparison.is_equal
    assert str(comparison) == "A step on 1 worker is a step in one process."


def test_outside_of_a_training_function_it_says_so():
    with pytest.raises(DistributorError, match="works only inside a training function"):
        compare_step(None, np.ones((2, 1)))
