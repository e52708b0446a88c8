"""Following ``fit`` in a process that others use, too."""

import sys
import threading
import types

import pytest

from spark_tensorflow_distributor.training.local_fits import follow_fits


class Callback:
    def on_epoch_begin(self, epoch, logs=None):
        pass


class Model:
    stop_training = False

    def fit(self, x=None, y=None, batch_size=None, epochs=1, callbacks=None):
        for callback in callbacks or []:
            callback.model = self
        for epoch in range(epochs):
            for callback in callbacks or []:
                callback.on_epoch_begin(epoch)
                for batch in range(2):
                    callback.on_train_batch_end(batch)
                callback.on_epoch_end(epoch, {"loss": 1.0 - epoch, "text": "no number"})
            if self.stop_training:
                break
        return callbacks


@pytest.fixture
def keras(monkeypatch):
    """A stand-in for Keras, importable as ``keras``."""
    package = types.ModuleType("keras")
    package.Model = type("Model", (Model,), {"fit": Model.fit})
    package.callbacks = types.SimpleNamespace(Callback=Callback, CallbackList=type("CallbackList", (), {}))
    monkeypatch.setitem(sys.modules, "keras", package)
    monkeypatch.delitem(sys.modules, "tf_keras", raising=False)
    return package


def test_epochs_are_reported_and_fits_are_numbered(keras):
    entries = []
    before = keras.Model.fit
    with follow_fits(lambda entry: entries.append(entry) or False):
        assert keras.Model.fit is not before
        keras.Model().fit([1], [2], epochs=2)
        keras.Model().fit([1], [2])
    assert [(entry["fit"], entry["epoch"], entry["logs"]) for entry in entries] == [
        (0, 0, {"loss": 1.0}), (0, 1, {"loss": 0.0}), (1, 0, {"loss": 1.0}),
    ]  # fmt: skip
    assert all(entry["seconds"] >= 0 and entry["rows_per_second"] > 0 for entry in entries)
    assert keras.Model.fit is before
    assert keras.Model().fit(callbacks=[]) == []


def test_a_fit_ends_after_the_epoch_that_says_so(keras):
    entries = []
    with follow_fits(lambda entry: entries.append(entry) or entry["epoch"] == 1):
        keras.Model().fit(epochs=5)
    assert len(entries) == 2


def test_other_threads_are_not_followed(keras):
    entries = []
    with follow_fits(lambda entry: entries.append(entry) or False):
        other = threading.Thread(target=lambda: keras.Model().fit())
        other.start()
        other.join()
    assert entries == []


def test_the_last_follower_restores_the_method_and_no_other_wrapper_is_lost(keras):
    before = keras.Model.fit
    first, second = follow_fits(lambda entry: False), follow_fits(lambda entry: False)
    first.__enter__()
    second.__enter__()
    second.__exit__(None, None, None)
    assert keras.Model.fit is not before
    wrapped = keras.Model.fit
    foreign = lambda *args, **kwargs: wrapped(*args, **kwargs)  # noqa: E731
    keras.Model.fit = foreign
    first.__exit__(None, None, None)
    assert keras.Model.fit is foreign
    assert keras.Model().fit(callbacks=[]) == []


def test_a_keras_that_is_imported_later_is_followed(tmp_path, monkeypatch):
    (tmp_path / "keras.py").write_text(
        "from types import SimpleNamespace\n"
        "from stand_in import Callback, Model as Base\n"
        "Model = type('Model', (Base,), {'fit': Base.fit})\n"
        "callbacks = SimpleNamespace(Callback=Callback, CallbackList=tuple)\n"
    )
    monkeypatch.setitem(sys.modules, "stand_in", sys.modules[__name__])
    for name in ("keras", "tf_keras"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    finders, entries = list(sys.meta_path), []
    with follow_fits(lambda entry: entries.append(entry) or False):
        import keras

        keras.Model().fit(callbacks=None)
    monkeypatch.delitem(sys.modules, "keras")
    assert len(entries) == 1
    assert sys.meta_path == finders
