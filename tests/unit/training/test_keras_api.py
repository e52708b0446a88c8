"""The Keras in use, with stand-ins for its packages."""

import inspect
import sys

import pytest

from spark_tensorflow_distributor import ConfigurationError
from spark_tensorflow_distributor.training import keras_api, progress


@pytest.mark.parametrize(("is_chief", "meaning"), [(True, 2), (False, 0)])
def test_only_auto_verbose_gets_a_meaning(model, is_chief, meaning):
    keras_api.quiet_auto_verbose(is_chief)
    assert model.fit() == "history"
    assert model.verbose == meaning
    model.fit(None, None, 8, 1, "auto")
    assert model.verbose == meaning
    model.fit(None, None, 8, 1, 1)
    assert model.verbose == 1
    assert model.evaluate(steps=3) == (meaning, {"steps": 3})
    assert model.evaluate(verbose=0) == (0, {})
    assert model.predict("x") == meaning
    assert model.predict("x", verbose=1) == 1


def test_wrong_arguments_raise_the_errors_of_keras(model):
    keras_api.quiet_auto_verbose(is_chief=True)
    with pytest.raises(TypeError, match=r"fit\(\) got an unexpected keyword argument 'epoch'"):
        model.fit(epoch=3)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        model.predict()


def test_fit_keeps_its_signature_and_docstring(model):
    signature, text = inspect.signature(model.fit), model.fit.__doc__
    keras_api.quiet_auto_verbose(is_chief=True)
    assert (inspect.signature(model.fit), model.fit.__doc__) == (signature, text)


def test_a_process_without_keras_is_left_alone(install_keras, caplog):
    keras_api.quiet_auto_verbose(is_chief=True)
    progress.report_fit_progress(print)
    assert keras_api.keras_for_workers() is None
    assert "keras" not in sys.modules
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("value", "selected"),
    [("1", "tf_keras"), ("true", "tf_keras"), ("True", "tf_keras"), ("TRUE", "keras"), ("0", "keras"), ("", "keras")],
)
def test_tf_keras_is_selected_as_tensorflow_selects_it(monkeypatch, value, selected):
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", value)
    assert keras_api.selected_keras() == selected


@pytest.mark.parametrize("version", ["3.0.5", "3.9.2"])
def test_a_keras_3_that_is_too_old_is_refused_with_the_pip_command(install_keras, version):
    install_keras(version=version)
    with pytest.raises(ConfigurationError, match=rf"have Keras {version}.*pip install 'keras>=3\.10'"):
        keras_api.keras_for_workers()


@pytest.mark.parametrize("version", ["3.10.0", "3.15.1", "3.16.0.dev2026010101", "4.0.0"])
def test_later_releases_can_train_over_workers(install_keras, version):
    keras = install_keras(version=version)
    assert keras_api.keras_for_workers() is keras


@pytest.mark.parametrize(("version", "backend"), [("2.15.0", "tensorflow"), ("3.5.0", "jax"), ("3.99.0", "torch")])
def test_another_keras_is_not_looked_into(install_keras, version, backend):
    install_keras(version=version, backend=backend)
    assert keras_api.keras_for_workers() is None


def test_an_old_keras_3_does_no_harm_beside_tf_keras(install_keras, monkeypatch):
    install_keras(version="3.5.0")
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    assert keras_api.keras_for_workers() is None


@pytest.mark.parametrize(
    ("module", "package"),
    [("keras.src.models.model", "keras"), ("tf_keras.src.engine.training", "tf_keras"), ("keras_utils", "")],
)
def test_a_model_belongs_to_the_package_of_its_bases(module, package):
    base = type("Model", (), {"__module__": module})
    assert keras_api.keras_of(type("UserModel", (base,), {})()) == package
