"""Errors name the object that cannot be pickled."""

import io
import json
import linecache
import pickle
import threading
import types

import pytest

from spark_tensorflow_distributor import ConfigurationError, SerializationError
from spark_tensorflow_distributor.data.driver_only import DriverOnlyError, refuse_driver_only
from spark_tensorflow_distributor.runtime.driver.pickling import pack_function, pack_script
from spark_tensorflow_distributor.training.keras_pickle import dumps

pytest.importorskip("pyspark")
from pyspark import Accumulator, Broadcast
from pyspark.accumulators import AddingAccumulatorParam

GLOBAL_LOCK = threading.Lock()


def uses_a_global():
    return GLOBAL_LOCK


def test_the_argument_is_named():
    with pytest.raises(SerializationError, match=r"The argument 'lock', a lock, .*Pass the values it is built from"):
        pack_function(lambda lock, x: x, {"x": 1, "lock": threading.Lock()})


def test_the_captured_variable_is_named():
    handle = threading.Lock()
    with pytest.raises(SerializationError, match=r"The variable 'handle'.*Create it inside the function"):
        pack_function(lambda: handle, {})


def test_the_variable_of_an_inner_function_is_named():
    handle = threading.Lock()

    def inner():
        return handle

    with pytest.raises(SerializationError, match=r"The variable 'handle', which 'inner' uses from an enclosing scope"):
        pack_function(lambda: inner(), {})


def test_the_variable_of_a_global_function_or_class_is_named():
    source = "def helper(): return [lock for _ in '1']\nclass Net:\n    def call(self): return (lambda: lock)()\n"
    namespace = {"__name__": "__main__", "lock": threading.Lock()}
    exec(source + "def f(): return helper()\ndef g(): return Net()\n", namespace)
    for name, user in {"f": "helper", "g": "Net.call"}.items():
        with pytest.raises(SerializationError, match=f"The global variable 'lock', which '{user}' uses, a lock"):
            pack_function(namespace[name], {})


def test_functions_that_refer_to_each_other():
    handle = threading.Lock()

    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1) and handle

    with pytest.raises(SerializationError, match="The variable 'handle', which 'odd' uses"):
        pack_function(lambda: even(3), {})


def test_the_object_of_a_method_is_named():
    class Trainer:
        def __init__(self):
            self.lock = threading.Lock()

        def train(self):
            return 1

    with pytest.raises(SerializationError, match=r"The object of the method 'train', a Trainer"):
        pack_function(Trainer().train, {})


def test_arguments_that_the_function_does_not_accept():
    with pytest.raises(ConfigurationError, match=r"missing a required argument: 'b'"):
        pack_function(lambda a, b: 1, {"a": 1})
    with pytest.raises(ConfigurationError, match="unexpected keyword argument 'c'"):
        pack_function(lambda: 1, {"c": 1})
    with pytest.raises(ConfigurationError, match="got an int"):
        pack_function(3, {})


def test_scripts(tmp_path):
    path = tmp_path / "s.py"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        pack_script(str(path), [])
    path.write_text("def broken(:\n")
    with pytest.raises(ConfigurationError, match="is not valid Python"):
        pack_script(str(path), [])
    path.write_text("print(1)\n")
    with pytest.raises(ConfigurationError, match="list of strings"):
        pack_script(str(path), [1])
    assert b"print(1)" in pack_script(str(path), ["--x"]).payload


def test_source_lines_travel_with_functions_that_the_executors_cannot_find():
    source = "def train():\n    return inner()\n\ndef inner():\n    return 1\n"
    linecache.cache["<cell 1>"] = (len(source), None, source.splitlines(True), "<cell 1>")
    namespace = {"__name__": "__main__"}
    exec(compile(source, "<cell 1>", "exec"), namespace)
    file = io.BytesIO(pack_function(namespace["train"], {}).payload)
    del linecache.cache["<cell 1>"]
    assert pickle.load(file) == {"<cell 1>": source}
    function, kwargs = pickle.load(file)
    assert (function(), kwargs) == (1, {})


def test_the_sources_of_libraries_do_not_travel():
    file = io.BytesIO(pack_function(lambda: json.dumps(1), {}).payload)
    assert list(pickle.load(file)) == [__file__]


def test_a_dataframe_is_refused_and_named(sparks):
    df, column = sparks("DataFrame"), sparks("Column")
    hint = "Pass the DataFrame to run() as a separate keyword argument, and the function receives its rows."
    with pytest.raises(SerializationError) as caught:
        pack_function(lambda: df, {})
    start = "The variable 'df', which the function uses from an enclosing scope, a DataFrame, cannot be sent to the "
    assert str(caught.value) == f"{start}workers: it exists only on the driver. {hint}"
    with pytest.raises(SerializationError, match=r"The argument 'd', a list, .*it refers to a DataFrame, which exists"):
        pack_function(lambda d: 1, {"d": [df]})
    with pytest.raises(SerializationError, match=r"'column'.*, a Column, .*Compute with Spark before run\(\)"):
        pack_function(lambda: column, {})
    with pytest.raises(DriverOnlyError):  # what the estimators pickle
        dumps({"model": lambda: df})


def test_what_spark_connect_keeps_on_its_server_is_refused():
    for module, name in (("sql.connect.session", "SparkSession"), ("ml.util", "RemoteModelRef")):
        with pytest.raises(SerializationError, match=f"'value'.*, a {name}, .*it exists only on the driver. Compute"):
            pack_function(lambda value: 1, {"value": pretended(module, name)})


def test_objects_of_spark_that_need_no_session_travel():
    from pyspark.ml.linalg import Vectors
    from pyspark.sql.types import LongType, Row, StructField, StructType

    for value in (Row(x=1), StructType([StructField("x", LongType())]), Vectors.dense([1.0])):
        assert pack_function(lambda value: 1, {"value": value})
    refuse_driver_only(pretended("sql.connect.udf", "UserDefinedFunction"))


@pytest.fixture(params=["sql.connect.x", "sql.classic.x"])
def sparks(request):
    return lambda name: pretended(request.param, name)


def pretended(module, name):
    """Return an object of a class that PySpark has in this module, in some version."""
    return type(name, (), {"__module__": f"pyspark.{module}"})()


def test_shared_variables_are_replaced_and_refused_on_connect():
    counted = Accumulator(17, 0, AddingAccumulatorParam(0))
    packed = pack_function(lambda: counted.add(1), {})
    assert packed.uses_accumulators
    with pytest.raises(SerializationError, match=r"The variable 'counted'.* is an accumulator of.*Return"):
        pack_function(lambda: counted.add(1), {}, is_connect=True)
    with pytest.raises(SerializationError, match=r"The argument 'table' is a broadcast variable.*Pass the value"):
        pack_function(lambda table: 1, {"table": pretended_broadcast(3)}, is_connect=True)
    assert list(pack_function(lambda table: 1, {"table": pretended_broadcast(3)}).broadcasts) == [3]


def pretended_broadcast(number):
    made = Broadcast(path="/nowhere")
    made._jbroadcast = types.SimpleNamespace(id=lambda: number)
    return made
