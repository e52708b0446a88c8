"""The Keras in use, with stand-ins for its packages."""

import sys

import pytest

from spark_tensorflow_distributor import ConfigurationError
from spark_tensorflow_distributor.training import keras_api


def test_a_process_without_keras_is_left_alone(install_keras, caplog):
    assert keras_api.keras_packages() == []
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
    monkeypatch.delenv("TF_USE_LEGACY_KERAS")
    assert keras_api.selected_keras() == "keras"
    assert keras_api.selected_keras({"TF_USE_LEGACY_KERAS": value}) == selected


def test_versions():
    versions = ["2.15.0", "3.9.2", "3.10.0", "3.16.0.dev2026", "4.0.0", "git"]
    assert sorted(set(versions), key=keras_api.major_and_minor) == versions
    assert [keras_api.package_of_version(each) for each in ("2.15.0", "3.2.0", "20.0", "")] == [
        "tf_keras",
        *["keras"] * 3,
    ]


@pytest.mark.parametrize("version", ["3.0.5", "3.9.2"])
def test_a_keras_3_that_is_too_old_is_rejected_with_the_pip_command(install_keras, version):
    install_keras(version=version)
    with pytest.raises(ConfigurationError, match=rf"have Keras {version}.*pip install 'keras>=3\.10'"):
        keras_api.keras_for_workers()


@pytest.mark.parametrize("version", ["3.10.0", "3.15.1", "3.16.0.dev2026010101", "4.0.0"])
def test_later_releases_can_train_over_workers(install_keras, version):
    keras = install_keras(version=version)
    assert keras_api.keras_for_workers() is keras


@pytest.mark.parametrize(("version", "backend"), [("2.15.0", "tensorflow"), ("3.5.0", "jax"), ("3.99.0", "torch")])
def test_other_keras_packages_are_ignored(install_keras, version, backend):
    install_keras(version=version, backend=backend)
    assert keras_api.keras_for_workers() is None


def test_an_old_keras_3_is_ignored_with_tf_keras(install_keras, monkeypatch):
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
