"""The methods of a model."""

import os
import tempfile
import threading

import numpy as np

from .table import BATCH, case, dataset, dense, digits, fit, outcome, wait_for_all


@case()
def fit_twice(keras):
    x, y = digits()
    model = dense(keras)
    first = fit(model, x, y, epochs=1)
    second = fit(model, dataset(x, y), epochs=3, initial_epoch=1)
    return outcome(model, second, first=first.history["loss"])


@case()
def two_models(keras):
    x, y = digits()
    teacher, student = dense(keras), dense(keras, keras.optimizers.Adam(0.01), loss="mse", metrics=[])
    fit(teacher, x, y)
    history = fit(student, x, teacher.predict(x, batch_size=BATCH, verbose=0))
    return {**outcome(student, history), "teacher": teacher.get_weights()[0]}


@case(rtol=1e-5, atol=1e-5)
def evaluate(keras):
    x, y = digits()
    model = dense(keras)
    evaluated = model.evaluate(dataset(x, y), verbose=0, return_dict=True)
    some = model.evaluate(dataset(x, y).repeat(), steps=3, verbose=0)
    return outcome(model, some=some, again=model.evaluate(x, y, batch_size=50, verbose=0), **evaluated)


@case(rtol=1e-5, atol=1e-5)
def predict_arrays(keras):
    x, _ = digits()
    model = dense(keras)
    return outcome(model, predicted=model.predict(x, batch_size=BATCH, verbose=0))


@case()
def predict_dataset(keras):
    x, _ = digits()
    model = dense(keras)
    some = model.predict(dataset(x), steps=3, verbose=0)
    return outcome(model, predicted=model.predict(dataset(x), verbose=0), some=some)


@case()
def predict_nested(keras):
    x, _ = digits(101)
    inputs = keras.Input((64,))
    hidden = keras.layers.Dense(5, name="hidden")(inputs)
    model = keras.Model(inputs, {"a": hidden, "b": [keras.layers.Dense(3)(hidden), keras.layers.Dense(2)(hidden)]})
    predicted = model.predict(x, batch_size=BATCH, verbose=0)
    return outcome(model, a=predicted["a"], b0=predicted["b"][0], b1=predicted["b"][1])


@case()
def on_batch(keras):
    import tensorflow as tf

    x, y = digits()
    model = dense(keras)
    # Every worker predicts by itself, as many rows of its own as it likes.
    resolver = tf.distribute.get_strategy().cluster_resolver
    rank = 0 if resolver is None else resolver.task_id
    own = []
    for _ in range(3 - rank):
        own = model.predict_on_batch(x[rank : rank + 5]) - np.asarray(model(x[rank : rank + 5]))
    logs = [model.train_on_batch(x[:BATCH], y[:BATCH], return_dict=True)["loss"] for _ in range(3)]
    tested = model.test_on_batch(x[:BATCH], y[:BATCH], return_dict=True)["loss"]
    return outcome(model, logs=logs, tested=tested, own=own, predicted=model.predict_on_batch(x[:BATCH])[:20])


@case(keras_3_only=True)
def sparse_on_batch(keras):
    import tensorflow as tf

    x, y = digits(BATCH)
    rows = tf.sparse.from_dense(np.where(x > 0.5, x, 0))
    model = keras.Sequential([keras.Input((64,), sparse=True), keras.layers.Dense(10, activation="softmax")])
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    return outcome(model, losses=[model.train_on_batch(rows, y) for _ in range(3)])


@case()
def batches_in_a_callback(keras):
    """The logs of fit's own steps are not read, but a callback reads the loss of a batch and the steps of evaluate."""
    x, y = digits()
    model, other = dense(keras), dense(keras)
    losses = []

    class Batches(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            losses.append(self.model.test_on_batch(x[:50], y[:50], return_dict=True)["loss"])
            losses.append(other.train_on_batch(x[:50], y[:50], return_dict=True)["loss"])
            reader = keras.callbacks.LambdaCallback()
            reader.on_test_batch_end = lambda batch, logs=None: losses.append(logs["loss"])
            self.model.evaluate(x[:80], y[:80], batch_size=BATCH, verbose=0, callbacks=[reader])

    history = fit(model, x, y, callbacks=[Batches()])
    losses += [each.train_on_batch(x[:50], y[:50], return_dict=True)["loss"] for each in (model, other)]
    return outcome(model, history, losses=[float(loss) for loss in losses])


@case()
def save_and_load(keras):
    """All ranks save under the same name at the same time."""
    x, y = digits()
    model = dense(keras)
    fit(model, x, y)
    folder = os.environ["CONFORMANCE_FOLDER"]
    path = os.path.join(folder, "model.keras")
    model.save(path)
    model.save(os.path.join(folder, "model.h5"))
    wait_for_all()
    again = keras.models.load_model(path)
    model.save_weights(os.path.join(folder, "model.weights.h5"))
    wait_for_all()
    other = dense(keras)
    fit(other, x, y, epochs=1)
    other.load_weights(os.path.join(folder, "model.weights.h5"))
    wait_for_all()
    return outcome(again, fit(again, x, y, epochs=1), loaded=other.get_weights()[0], left=len(os.listdir(folder)))


@case(keras_3_only=True)
def save_on_the_chief(keras):
    """Only the chief saves, as is common in programs."""
    import tensorflow as tf

    x, y = digits()
    model = dense(keras)
    fit(model, x, y)
    path = os.path.join(os.environ["CONFORMANCE_FOLDER"], "model.keras")
    resolver = tf.distribute.get_strategy().cluster_resolver
    if resolver is None or resolver.task_id == 0:
        model.save(path)
    wait_for_all()
    return outcome(keras.models.load_model(path), fit(model, x, y, epochs=1))


@case(keras_3_only=True)
def export(keras):
    import tensorflow as tf

    x, y = digits()
    model = dense(keras)
    fit(model, x, y)
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, verbose=False)
        served = []

        def serve():
            exported = tf.saved_model.load(folder)
            served.append(exported.serve(tf.constant(x[:20])).numpy())

        # A new thread has no strategy, like the process for which the model is exported.
        thread = threading.Thread(target=serve)
        thread.start()
        thread.join()
    return outcome(model, served=served[0])
