"""The exceptions of this library."""

import importlib.util
import pickle
import sys

from spark_tensorflow_distributor import errors


def test_notes_are_shown_on_python_3_10(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    name = "spark_tensorflow_distributor.errors_on_python_3_10"
    spec = importlib.util.spec_from_file_location(name, errors.__file__)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    error = module.TrainingFailedError("It failed.", {})
    error.add_note("Not relaunched.")
    assert str(error) == "It failed.\nNot relaunched."
    assert str(pickle.loads(pickle.dumps(error))) == "It failed.\nNot relaunched."


def test_python_shows_notes_itself():
    error = errors.TrainingFailedError("It failed.", {})
    error.__notes__ = ["Not relaunched."]
    assert str(error) == ("It failed." if sys.version_info >= (3, 11) else "It failed.\nNot relaunched.")
