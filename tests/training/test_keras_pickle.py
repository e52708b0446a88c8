"""Models with the user's own classes and functions travel in both directions."""

import io
import os
import pickle
import subprocess
import sys
import threading
import types

import keras
import numpy as np
import pytest

from spark_tensorflow_distributor import MirroredStrategyRunner
from spark_tensorflow_distributor.runtime.results import RescuedWeights
from spark_tensorflow_distributor.runtime.trainer.result import UnsendableResultError, write_result
from spark_tensorflow_distributor.training.keras_pickle import dumps

OWN_MODULE = """
import keras

class Shift(keras.layers.Layer):
    def __init__(self, by=1.0, **options):
        super().__init__(**options)
        self.by = by

    def call(self, x):
        return x + self.by

    def get_config(self):
        return {**super().get_config(), "by": self.by}
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_layers.py").write_text(OWN_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield str(tmp_path)
    sys.modules.pop("own_layers", None)


def make_model(shift_class):
    """Return a model that uses a class from a module, and classes and functions that are local to this function."""

    class Scale(keras.layers.Layer):
        def __init__(self, inner, **options):
            super().__init__(**options)
            self.inner = inner

        def build(self, shape):
            self.factor = self.add_weight(shape=(), initializer="ones")

        def call(self, x):
            return self.inner(x) * self.factor

        def get_config(self):
            return {**super().get_config(), "inner": keras.saving.serialize_keras_object(self.inner)}

        @classmethod
        def from_config(cls, config):
            return cls(keras.saving.deserialize_keras_object(config.pop("inner")), **config)

    class Penalty(keras.regularizers.Regularizer):
        def __call__(self, weights):
            return 0.5 * keras.ops.sum(weights * weights)

        def get_config(self):
            return {}

    def squash(x):
        return keras.ops.tanh(x)

    def own_loss(y, predicted):
        return keras.ops.mean(keras.ops.abs(y - predicted), axis=-1)

    model = keras.Sequential(
        [
            keras.layers.Input((3,)),
            Scale(shift_class(by=2.0)),
            keras.layers.Dense(4, activation=squash, kernel_regularizer=Penalty()),
        ]
    )
    model.compile(optimizer="sgd", loss=own_loss)
    model.fit(np.ones((4, 3)), np.ones((4, 4)), verbose=0)
    return model


def test_a_model_brings_its_own_classes_along(own_module):
    import own_layers

    model = make_model(own_layers.Shift)
    x = np.arange(6, dtype="float32").reshape(2, 3)
    data = dumps({"model": model, "text": "other things"})
    program = (
        "import pickle, sys, numpy as np\n"
        "loaded = pickle.load(sys.stdin.buffer)\n"
        "model = loaded['model']\n"
        "x = np.arange(6, dtype='float32').reshape(2, 3)\n"
        "loss = model.evaluate(x, np.ones((2, 4)), verbose=0)\n"
        "print(loaded['text'], type(model.layers[0].inner).__module__, loss, *model.predict(x, verbose=0).ravel())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([own_module, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    *text, module, loss = done.stdout.decode().split()[:4]
    values = np.array(done.stdout.decode().split()[4:], float)
    assert (" ".join(text), module) == ("other things", "own_layers")
    np.testing.assert_allclose(values, model.predict(x, verbose=0).ravel(), rtol=1e-5)
    np.testing.assert_allclose(float(loss), model.evaluate(x, np.ones((2, 4)), verbose=0), rtol=1e-5)


def test_classes_of_the_same_process_are_the_same_again(own_module):
    import own_layers

    model = make_model(own_layers.Shift)
    again = pickle.loads(dumps(model))
    assert type(again.layers[0]) is type(model.layers[0])
    assert type(again.layers[0].inner) is own_layers.Shift


def test_a_model_with_its_own_classes_is_an_argument_and_a_result(spark, own_module):
    import own_layers

    def train(base):
        import keras

        class Double(keras.layers.Layer):
            def call(self, x):
                return 2 * x

        model = keras.Sequential([base, Double()])
        model.compile(optimizer="sgd", loss="mse")
        model.fit(np.ones((4, 3)), np.ones((4, 4)), verbose=0)
        return {"model": model, "predicted": model.predict(np.ones((2, 3)), verbose=0)}

    runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, spark=spark, py_modules=[own_layers])
    found = runner.run(train, base=make_model(own_layers.Shift))
    np.testing.assert_allclose(found["model"].predict(np.ones((2, 3)), verbose=0), found["predicted"], rtol=1e-5)
    assert type(found["model"].layers[0].layers[0].inner) is own_layers.Shift


def test_the_weights_of_a_model_without_a_config_are_rescued():
    class NoConfig(keras.Model):
        def __init__(self, settings):
            super().__init__()
            self.dense = keras.layers.Dense(2)
            self.settings = settings

        def call(self, x):
            return self.dense(x)

    model = NoConfig(types.SimpleNamespace(size=2))
    model(np.ones((1, 3)))
    with io.BytesIO() as file:
        size = write_result({"model": model}, file, 0)
        data = file.getvalue()[:size]
    if tuple(map(int, keras.__version__.split(".")[:2])) < (3, 12):
        # The model is saved without the argument. The driver cannot load that, and keeps the data.
        with pytest.raises(TypeError, match="could not be deserialized properly"):
            pickle.loads(data)
        return
    check_rescued(data, model, "The function returned a dict, which cannot be pickled: ")


def check_rescued(data, model, message):
    rescued = pickle.loads(data)
    assert isinstance(rescued, RescuedWeights)
    assert rescued.message.startswith(message)
    arrays = np.load(io.BytesIO(rescued.data))
    for name, expected in zip(arrays.files, model.get_weights(), strict=True):
        np.testing.assert_array_equal(arrays[name], expected)


class WithoutOptions(keras.layers.Layer):
    def __init__(self, size):
        super().__init__()
        self.size = size
        self.dense = keras.layers.Dense(size)

    def call(self, x):
        return self.dense(x)

    def get_config(self):
        return {**super().get_config(), "size": self.size}


class WithoutArgument(WithoutOptions):
    def __init__(self, size, **options):
        keras.layers.Layer.__init__(self, **options)
        self.dense = keras.layers.Dense(size)

    def get_config(self):
        return keras.layers.Layer.get_config(self)


class Activated(keras.layers.Layer):
    """Gets a function by name, which only the pickled classes and functions know."""

    def __init__(self, function, **options):
        super().__init__(**options)
        self.function = keras.activations.get(function)

    def call(self, x):
        return self.function(x)

    def get_config(self):
        return {**super().get_config(), "function": keras.activations.serialize(self.function)}


def double(x):
    return 2 * x


@pytest.mark.parametrize(
    ("layer_class", "reason"), [(WithoutOptions, "got an unexpected"), (WithoutArgument, "missing 1 required")]
)
def test_the_weights_of_a_model_that_cannot_be_loaded_are_rescued(layer_class, reason):
    model = keras.Sequential([keras.Input((3,)), layer_class(2)])
    with io.BytesIO() as file:
        size = write_result(model, file, 0)
        data = file.getvalue()[:size]
    text = "The function returned a keras.src.models.sequential.Sequential, which cannot be loaded again: "
    check_rescued(data, model, f"{text}{layer_class.__name__}.__init__() {reason}")


@pytest.mark.parametrize("layer", [lambda: Activated(double), lambda: keras.layers.Lambda(lambda x: 2 * x)])
def test_models_that_can_be_loaded_are_not_loaded_on_the_worker(layer, monkeypatch):
    model = keras.Sequential([keras.Input((3,)), layer()])
    monkeypatch.setattr("spark_tensorflow_distributor.runtime.trainer.result.pickle", None)
    with io.BytesIO() as file:
        write_result(model, file, 0)
        file.seek(0)
        loaded = pickle.load(file)
    np.testing.assert_array_equal(loaded(np.ones((1, 3))), [[2, 2, 2]])


def test_other_results_that_cannot_be_pickled_are_refused():
    with io.BytesIO() as file, pytest.raises(UnsendableResultError, match=r"cannot be pickled.*Return plain data"):
        write_result(threading.Lock(), file, 0)
    with io.BytesIO() as file, pytest.raises(UnsendableResultError, match=r"maxResultSize is"):
        write_result(bytes(3000), file, 2000)
