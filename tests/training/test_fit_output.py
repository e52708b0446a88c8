"""Progress reports and printed output of a fit on two workers."""

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

import pytest

sys.path.append(str(Path(__file__).parent))

from mwms import run_group

BATCH = 64
ROWS = 512


# ---- Functions that the processes run.


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


def run_all(strategy):
    """Run all cases in a single launch of a group."""
    import tensorflow as tf

    package = tf.keras.Model.__module__.split(".")[0]
    return {"keras": package, "progress": report_progress(strategy), "verbose": count_lines(strategy)}


def report_progress(strategy):
    """Record what fit reports, and what traces the reporting leaves."""
    import tensorflow as tf

    from spark_tensorflow_distributor.training.fit_hooks import hook_methods
    from spark_tensorflow_distributor.training.progress import _FitReporter, report_fit_progress

    keras = tf.keras
    x, y = (part[:ROWS] for part in digits())
    messages = []
    found = {"signature": str(inspect.signature(keras.Model.fit))}
    hook_methods([keras], [report_fit_progress(lambda message: messages.append({**message, "time": time.monotonic()}))])
    found["signature kept"] = str(inspect.signature(keras.Model.fit)) == found["signature"]

    class Slow(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            time.sleep(0.02)

    class Refusing(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            raise InterruptedError("enough")

    with strategy.scope():
        model = dense_model(keras, "sgd")
    callbacks = [Slow()]
    history = model.fit(dataset(x, y, batch=16).prefetch(2), epochs=2, callbacks=callbacks, verbose=0)
    found.update(dataset=messages[:], given_callbacks=len(callbacks), same_history=history is model.history)
    found["last logs"] = {name: values[-1] for name, values in history.history.items()}

    del messages[:]
    model.fit(x, y, BATCH, 1, 0)  # positional, up to verbose
    found["arrays"] = messages[:]

    del messages[:]
    callback_list = keras.callbacks.CallbackList([Slow()], add_history=True, model=model, epochs=1, steps=8, verbose=0)
    parts = list(callback_list.callbacks)
    model.fit(dataset(x, y), callbacks=callback_list, verbose=0)
    found.update(callback_list=messages[:], callback_list_as_before=callback_list.callbacks == parts)

    del messages[:]
    with contextlib.suppress(InterruptedError):
        model.fit(dataset(x, y), callbacks=Refusing(), verbose=0)
    found["failed"] = messages[:]

    def broken(message):
        messages.append(message)
        raise OSError("gone")

    report_fit_progress(broken)
    del messages[:]
    found["epochs despite it"] = len(model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0).history["loss"])
    found["messages while broken"] = len(messages)

    gc.collect()
    found["reporters left"] = sum(isinstance(thing, _FitReporter) for thing in gc.get_objects())
    found["weights unpickled"] = len(pickle.loads(pickle.dumps(model)).get_weights())
    return found


def count_lines(strategy):
    """Count the lines that each value of verbose prints."""
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


# ---- Tests.

with_tf_keras = pytest.mark.skipif(not find_spec("tf_keras"), reason="tf_keras is not installed")
PACKAGES = pytest.mark.parametrize(
    "launched", ["keras", pytest.param("tf_keras", marks=with_tf_keras)], indirect=True, scope="module"
)


@pytest.fixture(scope="module")
def launched(request):
    """Results of both workers, with one of the Keras packages."""
    env = {"TF_USE_LEGACY_KERAS": "1"} if request.param == "tf_keras" else {}
    group = run_group(f"{Path(__file__).stem}:run_all", workers=2, env=env)
    assert {results["keras"] for results in group} == {request.param}
    return group


def events(messages, *names):
    return [message for message in messages if message["event"] in names]


@PACKAGES
def test_fit_reports_its_progress(launched):
    for results in launched:
        found = results["progress"]
        messages = found["dataset"]
        steps = events(messages, "step")
        ends = events(messages, "epoch_end")
        assert [messages[0]["event"], messages[1]["event"], messages[-1]["event"]] == ["fit_begin", "step", "fit_end"]
        assert messages[0]["epochs"] == 2
        assert messages[0]["steps"] in (ROWS // 16, None)
        assert [(end["epoch"], end["step"]) for end in ends] == [(0, ROWS // 16), (1, ROWS // 16)]
        assert ends[-1]["logs"] == pytest.approx(found["last logs"])
        assert all(isinstance(step["loss"], float) for step in steps)
        assert [step["samples"] for step in steps] == [16 * (32 * step["epoch"] + step["step"]) for step in steps]
        times = [step["time"] for step in steps]
        assert len(steps) > 3
        assert all(later - earlier > 0.19 for earlier, later in itertools.pairwise(times))


@PACKAGES
def test_the_batch_size_of_arrays_is_known(launched):
    for results in launched:
        messages = results["progress"]["arrays"]
        assert messages[0]["steps"] == ROWS // BATCH
        assert messages[1]["samples"] == BATCH * messages[1]["step"]
        assert events(messages, "epoch_end")[0]["step"] == ROWS // BATCH


@PACKAGES
def test_reporting_leaves_nothing_behind(launched):
    for results in launched:
        found = results["progress"]
        assert found["signature kept"]
        assert found["given_callbacks"] == 1
        assert found["same_history"]
        assert found["callback_list_as_before"]
        assert found["reporters left"] == 0
        assert found["weights unpickled"] == 4


@PACKAGES
def test_fit_with_a_callback_list_is_reported(launched):
    for results in launched:
        messages = results["progress"]["callback_list"]
        assert events(messages, "epoch_end")[0]["step"] == ROWS // BATCH
        assert messages[-1]["event"] == "fit_end"


@PACKAGES
def test_a_failed_fit_reports_its_end(launched):
    for results in launched:
        assert [message["event"] for message in results["progress"]["failed"]] == ["fit_begin", "fit_end"]


@PACKAGES
def test_training_survives_a_broken_receiver(launched):
    for results in launched:
        assert results["progress"]["epochs despite it"] == 2
        assert results["progress"]["messages while broken"] == 1


@PACKAGES
def test_auto_verbose_prints_one_line_per_epoch_on_the_chief_only(launched):
    chief, other = (results["verbose"] for results in launched)
    for automatic in ("fit", "fit, auto", "evaluate", "predict"):
        assert (chief[automatic], other[automatic]) == (1, 0)
    for explicit in ("fit, 1", "predict, 1"):
        assert chief[explicit] == other[explicit] >= 1
    assert chief["fit, 0"] == other["fit, 0"] == 0
