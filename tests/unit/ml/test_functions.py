"""Functions are saved by value, with the versions that wrote them."""

import pickle
import subprocess
import sys
import threading

import pytest

from spark_tensorflow_distributor import SerializationError
from spark_tensorflow_distributor.ml.functions import by_value, dump_objects, load_objects, versions

MODULE = """
FACTOR = 3

def helper(x):
    return FACTOR * x

def build(units):
    return helper(units)
"""


def test_a_function_of_an_own_module_loads_without_the_module(tmp_path, monkeypatch):
    (tmp_path / "mine_of_this_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import mine_of_this_test

    data = dump_objects({"modelFn": mine_of_this_test.build, "runCallbacks": [mine_of_this_test.helper]})
    (tmp_path / "saved").write_bytes(data)
    program = (
        "import sys; from spark_tensorflow_distributor.ml.functions import load_objects, versions\n"
        "found = load_objects(open(sys.argv[1], 'rb').read(), versions(), 'here')\n"
        "print(found['modelFn'](5), 'mine_of_this_test' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "saved")], capture_output=True, text=True, cwd="/"
    )
    assert done.stdout.split() == ["15", "False"], done.stderr
    from pyspark import cloudpickle

    assert "mine_of_this_test" not in cloudpickle.list_registry_pickle_by_value()


def test_installed_modules_travel_by_name():
    with by_value([pytest.raises, pickle.dumps, 3, [subprocess.run]]):
        assert len(dump_objects({"modelFn": pytest.raises})) < 300


def test_what_cannot_be_pickled_is_named():
    lock = threading.Lock()
    with pytest.raises(SerializationError, match=r"The Param fitFn, a function, cannot be saved: .*lock"):
        dump_objects({"modelFn": len, "fitFn": lambda: lock})


def test_another_version_of_python_is_refused_before_it_loads():
    with pytest.raises(SerializationError, match=r"saved with Python 2\.7\.18, and Python 3"):
        load_objects(b"not even a pickle", {"python": "2.7.18"}, "path")


def test_a_missing_module_is_reported_with_the_versions():
    data = dump_objects({"modelFn": len}).replace(b"builtins", b"builtinz")
    with pytest.raises(SerializationError, match=r"path cannot be loaded: .*builtinz.* saved with python 3.*pyspark"):
        load_objects(data, versions(), "path")
