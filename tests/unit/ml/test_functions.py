"""Functions are saved by value, with the versions that wrote them."""

import functools
import pickle
import subprocess
import sys
import threading

import pytest

from spark_tensorflow_distributor import SerializationError
from spark_tensorflow_distributor.ml import KerasRegressionGroupModel, KerasRegressionModel, KerasRegressor
from spark_tensorflow_distributor.ml.functions import by_value, dump_classes, dump_objects, load_objects, versions
from spark_tensorflow_distributor.ml.persistence import _split

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


SECOND = """
import functools
import third_of_mine
from third_of_mine import Base

def scaled(function):
    @functools.wraps(function)
    def call(x):
        return 10 * function(x)
    return call

class Derived(Base):
    def value(self, x):
        return third_of_mine.helper(x) + super().value(x)

@scaled
def build(x):
    return Derived().value(x)
"""
THIRD = """
def helper(x):
    return x + 1

class Base:
    def value(self, x):
        return 100 * x
"""


@pytest.mark.parametrize("wrap", ["partial", "dict", "method", "lambda"])
def test_partial_functions_methods_and_second_modules_travel_by_value(tmp_path, monkeypatch, wrap):
    (tmp_path / "second_of_mine.py").write_text(SECOND)
    (tmp_path / "third_of_mine.py").write_text(THIRD)
    monkeypatch.syspath_prepend(str(tmp_path))
    import second_of_mine as second

    values = {
        "partial": {"modelFn": functools.partial(second.build, x=2)},
        "dict": {"modelParams": {"functions": [{"build": lambda: second.build(2)}]}},
        "method": {"modelFn": functools.partial(second.Derived().value, x=2)},
        "lambda": {"modelFn": lambda build=second.build: build(2)},
    }[wrap]
    data = dump_objects(values)
    (tmp_path / "saved").write_bytes(data)
    program = (
        "import sys; from spark_tensorflow_distributor.ml.functions import dump_objects, load_objects, versions\n"
        "found = load_objects(open(sys.argv[1], 'rb').read(), versions(), 'here')\n"
        "found = load_objects(dump_objects(found), versions(), 'there')\n"  # saved again by another process
        "function = found['modelFn'] if 'modelFn' in found else found['modelParams']['functions'][0]['build']\n"
        "print(function())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "saved")], capture_output=True, text=True, cwd="/"
    )
    wanted = 203 if wrap == "method" else 2030
    assert done.stdout.split() == [str(wanted)], done.stderr


def test_the_classes_of_a_model_travel_by_value_or_at_least_by_name(tmp_path, monkeypatch):
    (tmp_path / "layers_of_mine.py").write_text(
        "import threading\nlock = threading.Lock()\n"
        "class Free:\n    value = 3\nclass Bound:\n    def call(self):\n        return lock\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import layers_of_mine as mine

    assert dump_classes({}) == b""
    free, bound = (dump_classes({each.__name__: each}) for each in (mine.Free, mine.Bound))
    assert pickle.loads(bound)["Bound"] is mine.Bound
    monkeypatch.delitem(sys.modules, "layers_of_mine")
    monkeypatch.setattr(sys, "path", [])
    assert pickle.loads(free)["Free"].value == 3
    with pytest.raises(ModuleNotFoundError):
        pickle.loads(bound)


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


def test_only_estimators_keep_their_modules():
    params = {"pyModules": [sys.modules[__name__]], "labelCol": "y"}
    plain, objects = _split(KerasRegressor(**params))
    assert (plain, list(objects)) == ({"labelCol": "y"}, ["pyModules"])
    for model in (KerasRegressionModel, KerasRegressionGroupModel):
        assert _split(model(**params)) == ({"labelCol": "y"}, {})
