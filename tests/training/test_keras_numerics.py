"""Two workers train, evaluate and predict as one process does with the same global batch."""

import contextlib
import gc
import io
import json
import pickle
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

from mwms import run_group

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
        hidden = keras.layers.Dense(16, activation="tanh")(left) + keras.layers.Dense(16)(right)
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


def run_all(strategy):
    return {**run_cases(strategy, list(CASES)), "progress": progress(strategy), "verbose": verbose(strategy)}


def progress(strategy):
    """What is told of a fit, and what is left of the telling."""
    import tensorflow as tf

    from spark_tensorflow_distributor.trainer.progress import _FitReporter, report_fit_progress

    keras = tf.keras
    x, y = digits()
    messages = []
    report_fit_progress(lambda message: messages.append({**message, "time": time.monotonic()}))

    class Own(keras.callbacks.Callback):
        pass

    own = [Own()]
    with strategy.scope():
        model = dense_model(keras, "sgd")
    arguments = {"batch_size": BATCH, "epochs": 2, "verbose": 0}
    history = model.fit(x[: ROWS + 10], y[: ROWS + 10], callbacks=own, **arguments)
    found = {"arrays": messages[:], "own callbacks": len(own), "history is the model's": history is model.history}

    del messages[:]
    callback_list = keras.callbacks.CallbackList([own[0]], add_history=True, model=model, epochs=1, steps=8, verbose=0)
    parts = list(callback_list.callbacks)
    model.fit(dataset(x[:ROWS], y[:ROWS]).prefetch(2), callbacks=callback_list, verbose=0)
    found.update(callback_list=messages[:], callback_list_is_as_before=callback_list.callbacks == parts)

    del messages[:]
    with contextlib.suppress(ValueError), strategy.scope():
        keras.Sequential([keras.Input((64,)), keras.layers.Dense(1)]).fit(x, y)  # not compiled
    found["refused"] = messages[:]

    def broken(message):
        messages.append(message)
        raise OSError("gone")

    report_fit_progress(broken)
    del messages[:]
    found["trained in spite of it"] = len(model.fit(x[:ROWS], y[:ROWS], **arguments).history["loss"])
    found["told when broken"] = len(messages)
    gc.collect()
    found["reporters left"] = sum(isinstance(thing, _FitReporter) for thing in gc.get_objects())
    with contextlib.suppress(ImportError):
        restored = pickle.loads(pickle.dumps(model))
        found["pickled"] = len(restored.get_weights())
    return json.loads(json.dumps(found))


def verbose(strategy):
    """Lines that each way of saying verbose prints."""
    import tensorflow as tf

    x, y = digits()
    with strategy.scope():
        model = dense_model(tf.keras, "sgd")
    printed = {}
    for label, argument in {
        "auto": {},
        "said auto": {"verbose": "auto"},
        "1": {"verbose": 1},
        "0": {"verbose": 0},
    }.items():
        with contextlib.redirect_stdout(io.StringIO()) as output:
            model.fit(x[:ROWS], y[:ROWS], BATCH, 2, **argument)
            model.evaluate(x[:ROWS], y[:ROWS], BATCH, **argument)
            model.predict(x[:ROWS], BATCH, **argument)
        printed[label] = len(output.getvalue().replace("\r", "\n").split("\n")) - 1
    return printed


# ---- the tests


@pytest.fixture(scope="module")
def single():
    return run_group("test_keras_numerics:run_all", workers=1)[0]


@pytest.fixture(scope="module")
def group():
    return run_group("test_keras_numerics:run_all", workers=2)


def assert_same(single, group, case):
    expected = single[case]
    assert expected
    for rank, results in enumerate(group):
        assert results[case].keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(
                results[case][name], value, rtol=1e-5, atol=1e-5, err_msg=f"{case}: {name} of rank {rank}"
            )


@pytest.mark.parametrize("case", CASES)
def test_two_workers_equal_one_process(single, group, case):
    assert_same(single, group, case)
