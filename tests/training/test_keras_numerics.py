"""Two workers train, evaluate and predict as one process does with the same global batch."""

import contextlib
import gc
import inspect
import io
import itertools
import pickle
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

from mwms import GroupFailed, run_group

BATCH = 64
ROWS = 512  # whole batches: a partial one is cut unevenly, and Keras then weighs its halves alike
EPOCHS = 3


# ---- what the processes run


def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    return (data.data / 16).astype("float32"), data.target.astype("int32")


def dense_model(keras, optimizer, **compile_arguments):
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(24, activation="tanh"), keras.layers.Dense(10, activation="softmax")]
    )
    compile_arguments = {"loss": "sparse_categorical_crossentropy", "metrics": ["accuracy"], **compile_arguments}
    model.compile(optimizer=optimizer, **compile_arguments)
    return model


def dataset(*tensors, batch=BATCH):
    import tensorflow as tf

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return tf.data.Dataset.from_tensor_slices(tensors).batch(batch).with_options(options)


def outcome(model, history=None, **values):
    weights = {f"weight {i}": np.asarray(weight) for i, weight in enumerate(model.get_weights())}
    logs = {f"history {name}": np.asarray(value) for name, value in history.history.items()} if history else {}
    return {**weights, **logs, **values}


def sgd_arrays(keras, strategy, x, y):
    with strategy.scope():
        model = dense_model(keras, keras.optimizers.SGD(0.1, momentum=0.9))
    history = model.fit(x[:ROWS], y[:ROWS], batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0)
    evaluated = model.evaluate(x[ROWS : 2 * ROWS], y[ROWS : 2 * ROWS], batch_size=BATCH, verbose=0)
    # 301 rows leave the last batch of 45 to be cut into 23 and 22
    predicted = model.predict(x[1000:1301], batch_size=BATCH, verbose=0)
    return outcome(model, history, evaluated=np.asarray(evaluated), predicted=predicted)


def adam_dataset(keras, strategy, x, y):
    with strategy.scope():
        model = dense_model(keras, keras.optimizers.Adam(0.01))
    valid = dataset(x[ROWS : 2 * ROWS], y[ROWS : 2 * ROWS])
    history = model.fit(dataset(x[:ROWS], y[:ROWS]), validation_data=valid, epochs=EPOCHS, verbose=0)
    return outcome(
        model,
        history,
        evaluated=np.asarray(model.evaluate(valid, verbose=0)),
        predicted=model.predict(dataset(x[:301]), verbose=0),
    )


def endless_dataset(keras, strategy, x, y):
    with strategy.scope():
        model = dense_model(keras, keras.optimizers.SGD(0.1))
    data = dataset(x[:ROWS], y[:ROWS]).repeat()
    return outcome(model, model.fit(data, steps_per_epoch=6, epochs=EPOCHS, verbose=0))


def dict_inputs(keras, strategy, x, y):
    with strategy.scope():
        left, right = keras.Input((32,), name="left"), keras.Input((32,), name="right")
        hidden = keras.layers.Dense(16, kernel_regularizer="l2")(left) + keras.layers.Dense(16)(right)
        model = keras.Model({"left": left, "right": right}, keras.layers.Dense(10, activation="softmax")(hidden))
        model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    inputs = {"left": x[:, :32], "right": x[:, 32:]}
    training = {name: value[:ROWS] for name, value in inputs.items()}
    weight = np.linspace(0.5, 1.5, ROWS).astype("float32")
    history = model.fit(training, y[:ROWS], sample_weight=weight, batch_size=BATCH, epochs=2, shuffle=False, verbose=0)
    return outcome(model, history, predicted=model.predict({k: v[:100] for k, v in inputs.items()}, verbose=0))


def vector_metric(keras, strategy, x, y):
    """A log with an axis of its own, and one that is no mean of the workers' values."""
    with strategy.scope():
        metrics = [keras.metrics.F1Score(average=None, name="f1"), keras.metrics.AUC(name="auc")]
        model = dense_model(keras, keras.optimizers.SGD(0.1), loss="categorical_crossentropy", metrics=metrics)
    y = np.eye(10, dtype="float32")[y]
    return outcome(model, model.fit(x[:ROWS], y[:ROWS], batch_size=BATCH, epochs=2, shuffle=False, verbose=0))


def custom_loop(keras, strategy, x, y):
    import tensorflow as tf

    with strategy.scope():
        optimizer = keras.optimizers.SGD(0.1)
        model = dense_model(keras, optimizer)
        optimizer.build(model.trainable_variables)
        cross_entropy = tf.keras.losses.SparseCategoricalCrossentropy(reduction="none")

    def step(features, labels):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(cross_entropy(labels, model(features, training=True))) / BATCH
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    @tf.function
    def distributed_step(features, labels):
        return strategy.reduce("SUM", strategy.run(step, (features, labels)), axis=None)

    losses = []
    for _ in range(2):
        for features, labels in strategy.experimental_distribute_dataset(dataset(x[:ROWS], y[:ROWS])):
            losses.append(float(distributed_step(features, labels)))
    return outcome(model, losses=np.asarray(losses))


CASES = {f.__name__: f for f in (sgd_arrays, adam_dataset, endless_dataset, dict_inputs, vector_metric, custom_loop)}


def run_cases(strategy, names):
    import tensorflow as tf

    keras = tf.keras
    x, y = digits()
    results = {}
    for name in names:
        keras.utils.set_random_seed(7)
        results[name] = CASES[name](keras, strategy, x, y)
    results["keras"] = keras.Model.__module__.split(".")[0]
    return results


def run_all(strategy, names=tuple(CASES)):
    """Everything that one launch of a group is worth."""
    return {**run_cases(strategy, names), "progress": tell_progress(strategy), "verbose": print_verbose(strategy)}


def tell_progress(strategy):
    """What is told of a fit, and what the telling leaves behind."""
    import tensorflow as tf

    from spark_tensorflow_distributor.trainer.progress import _FitReporter, report_fit_progress

    keras = tf.keras
    x, y = (part[:ROWS] for part in digits())
    told = []
    found = {"signature": str(inspect.signature(keras.Model.fit))}
    report_fit_progress(lambda message: told.append({**message, "time": time.monotonic()}))
    found["signature kept"] = str(inspect.signature(keras.Model.fit)) == found["signature"]

    class Slow(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            time.sleep(0.02)

    class Refusing(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise InterruptedError("enough")

    with strategy.scope():
        model = dense_model(keras, "sgd")
    own = [Slow()]
    history = model.fit(dataset(x, y, batch=16).prefetch(2), epochs=2, callbacks=own, verbose=0)
    found.update(dataset=told[:], own_callbacks=len(own), same_history=history is model.history)
    found["last logs"] = {name: values[-1] for name, values in history.history.items()}

    del told[:]
    model.fit(x, y, BATCH, 1, 0)  # positional, up to verbose
    found["arrays"] = told[:]

    del told[:]
    callback_list = keras.callbacks.CallbackList([Slow()], add_history=True, model=model, epochs=1, steps=8, verbose=0)
    parts = list(callback_list.callbacks)
    model.fit(dataset(x, y), callbacks=callback_list, verbose=0)
    found.update(callback_list=told[:], callback_list_as_before=callback_list.callbacks == parts)

    del told[:]
    with contextlib.suppress(InterruptedError):
        model.fit(dataset(x, y), callbacks=Refusing(), verbose=0)
    found["failed"] = told[:]

    def broken(message):
        told.append(message)
        raise OSError("gone")

    report_fit_progress(broken)
    del told[:]
    found["epochs in spite of it"] = len(model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0).history["loss"])
    found["told while broken"] = len(told)

    gc.collect()
    found["reporters left"] = sum(isinstance(thing, _FitReporter) for thing in gc.get_objects())
    found["weights unpickled"] = len(pickle.loads(pickle.dumps(model)).get_weights())
    return found


def print_verbose(strategy):
    """How many lines each way of saying verbose prints."""
    import tensorflow as tf

    x, y = (part[:BATCH] for part in digits())
    with strategy.scope():
        model = dense_model(tf.keras, "sgd")
    calls = {
        "fit": lambda: model.fit(x, y, batch_size=BATCH),
        "fit, auto": lambda: model.fit(x, y, BATCH, 1, "auto"),
        "fit, 1": lambda: model.fit(x, y, BATCH, 1, 1),
        "fit, 0": lambda: model.fit(x, y, batch_size=BATCH, verbose=0),
        "evaluate": lambda: model.evaluate(x, y, batch_size=BATCH),
        "predict": lambda: model.predict(x, BATCH),
        "predict, 1": lambda: model.predict(x, BATCH, verbose=1),
    }
    printed = {}
    for name, call in calls.items():
        with contextlib.redirect_stdout(io.StringIO()) as output:
            call()
        printed[name] = output.getvalue().count("\n")
    return printed


# ---- the tests

LEGACY_CASES = ["sgd_arrays", "adam_dataset", "dict_inputs"]
with_tf_keras = pytest.mark.skipif(not find_spec("tf_keras"), reason="tf_keras is not installed")
PACKAGES = pytest.mark.parametrize("launched", ["keras", pytest.param("tf_keras", marks=with_tf_keras)], indirect=True)


@pytest.fixture(scope="module")
def launch():
    """Runs all cases with a Keras package, once: what one process and what each of two workers returned."""
    done = {}

    def launch(package):
        legacy = package == "tf_keras"
        arguments = {
            "env": {"TF_USE_LEGACY_KERAS": "1"} if legacy else {},
            "names": LEGACY_CASES if legacy else list(CASES),
        }
        if package not in done:
            done[package] = GroupFailed("it failed for the test before")
            (single,) = run_group(f"{Path(__file__).stem}:run_all", workers=1, **arguments)
            assert single["keras"] == package
            done[package] = single, run_group(f"{Path(__file__).stem}:run_all", workers=2, **arguments)
        if isinstance(done[package], GroupFailed):
            raise done[package]
        return done[package]

    return launch


@pytest.fixture
def launched(request, launch):
    return launch(request.param)


def events(messages, *names):
    return [message for message in messages if message["event"] in names]


@pytest.mark.parametrize(
    ("launched", "case"),
    [("keras", case) for case in CASES]
    + [pytest.param("tf_keras", case, marks=with_tf_keras) for case in LEGACY_CASES],
    indirect=["launched"],
)
def test_two_workers_equal_one_process(launched, case):
    single, group = launched
    for rank, results in enumerate(group):
        assert results[case].keys() == single[case].keys()
        for name, value in single[case].items():
            np.testing.assert_allclose(
                results[case][name], value, rtol=1e-5, atol=1e-5, err_msg=f"{name} of rank {rank} is not one process's"
            )


@PACKAGES
def test_only_keras_3_under_several_workers_is_mended(launched):
    single, group = launched
    assert single["mended"] == []
    for results in group:
        assert ({"symbolic_build", "reduce_per_replica"} <= set(results["mended"])) == (single["keras"] == "keras")
        assert results["mended"] or single["keras"] == "tf_keras"


@PACKAGES
def test_fit_reports_its_progress(launched):
    for results in launched[1]:
        found = results["progress"]
        told = found["dataset"]
        steps = events(told, "step")
        ends = events(told, "epoch_end")
        assert [told[0]["event"], told[1]["event"], told[-1]["event"]] == ["fit_begin", "step", "fit_end"]
        assert told[0]["epochs"] == 2
        assert told[0]["steps"] in (ROWS // 16, None)
        assert [(end["epoch"], end["step"]) for end in ends] == [(0, ROWS // 16), (1, ROWS // 16)]
        assert ends[-1]["logs"] == pytest.approx(found["last logs"])
        assert all(isinstance(step["loss"], float) for step in steps)
        assert [step["samples"] for step in steps] == [16 * (32 * step["epoch"] + step["step"]) for step in steps]
        times = [step["time"] for step in steps]
        assert len(steps) > 3
        assert all(later - earlier > 0.19 for earlier, later in itertools.pairwise(times))


@PACKAGES
def test_arrays_tell_their_batch_size(launched):
    for results in launched[1]:
        told = results["progress"]["arrays"]
        assert told[0]["steps"] == ROWS // BATCH
        assert told[1]["samples"] == BATCH * told[1]["step"]
        assert events(told, "epoch_end")[0]["step"] == ROWS // BATCH


@PACKAGES
def test_reporting_leaves_nothing_behind(launched):
    for results in launched[1]:
        found = results["progress"]
        assert found["signature kept"]
        assert found["own_callbacks"] == 1
        assert found["same_history"]
        assert found["callback_list_as_before"]
        assert found["reporters left"] == 0
        assert found["weights unpickled"] == 4


@PACKAGES
def test_a_callback_list_is_reported_through(launched):
    for results in launched[1]:
        told = results["progress"]["callback_list"]
        assert events(told, "epoch_end")[0]["step"] == ROWS // BATCH
        assert told[-1]["event"] == "fit_end"


@PACKAGES
def test_a_fit_that_fails_ends_too(launched):
    for results in launched[1]:
        assert [message["event"] for message in results["progress"]["failed"]] == ["fit_begin", "fit_end"]


@PACKAGES
def test_training_survives_a_broken_receiver(launched):
    for results in launched[1]:
        assert results["progress"]["epochs in spite of it"] == 2
        assert results["progress"]["told while broken"] == 1


@PACKAGES
def test_auto_verbose_is_a_line_an_epoch_on_the_chief_and_none_elsewhere(launched):
    chief, other = (results["verbose"] for results in launched[1])
    for automatic in ("fit", "fit, auto", "evaluate", "predict"):
        assert (chief[automatic], other[automatic]) == (1, 0)
    for explicit in ("fit, 1", "predict, 1"):
        assert chief[explicit] == other[explicit] >= 1
    assert chief["fit, 0"] == other["fit, 0"] == 0
