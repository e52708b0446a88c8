"""What the training function finds on a worker: Spark's objects, the caller's modules and source lines."""

import linecache
import sys

import pytest

import spark_tensorflow_distributor as std
from helpers import WORKER_PATH
from spark_tensorflow_distributor import MirroredStrategyRunner, TrainingFailedError

ENV = {"PYTHONPATH": WORKER_PATH, "TF_USE_LEGACY_KERAS": "1"}


@pytest.fixture
def runner(spark):
    def make(num_slots=2, **options):
        return MirroredStrategyRunner(num_slots=num_slots, use_gpu=False, spark=spark, env=ENV, **options)

    return make


def test_broadcast_variables_files_and_accumulators(runner, spark, tmp_path):
    context = spark.sparkContext
    table, numbers = context.broadcast({"a": 1}), context.broadcast([1, 2, 3])
    counted, weighed = context.accumulator(0), context.accumulator(10.0)
    (tmp_path / "words.txt").write_text("one two")
    context.addFile(str(tmp_path / "words.txt"))

    def train(numbers):
        from pyspark import SparkFiles

        nonlocal counted
        counted += 1
        weighed.add(0.5)
        if std.get_context().attempt == 0:
            counted.add(100)
            raise ValueError("the first attempt fails")
        with open(SparkFiles.get("words.txt")) as file:
            return table.value["a"], sum(numbers.value), file.read()

    assert runner(max_restarts=1).run(train, numbers=numbers) == (1, 6, "one two")
    assert counted.value == 2  # once per rank, in the attempt that succeeded
    assert weighed.value == 11.0


def test_own_modules_travel_as_they_are_now(runner, tmp_path, monkeypatch):
    package = tmp_path / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import value")
    (package / "inner.py").write_text("value = 1")
    (package / "words.txt").write_text("data beside code")
    (tmp_path / "own_module.py").write_text("def double(x):\n    return 2 * x\n")

    def train():
        import importlib.resources

        import own_module
        import own_package

        assert not own_package.__file__.startswith(folder)
        text = importlib.resources.files("own_package").joinpath("words.txt").read_text()
        return own_module.double(own_package.value), text

    folder = str(tmp_path)
    with pytest.raises(TrainingFailedError, match="No module named 'own_module'"):
        runner().run(train)
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(TrainingFailedError, match=r"py_modules=\['own_module'\]"):
        runner().run(train)
    made = runner(py_modules=["own_module", package])
    assert made.run(train) == (2, "data beside code")
    (package / "inner.py").write_text("value = 21")
    assert made.run(train) == (42, "data beside code")
    sys.modules.pop("own_module", None)


def test_a_function_of_an_own_module_is_loaded(runner, tmp_path, monkeypatch):
    (tmp_path / "training_of_a_test.py").write_text("def train():\n    return 5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import training_of_a_test

    with pytest.raises(std.SerializationError, match=r"py_modules=\['training_of_a_test'\]"):
        runner().run(training_of_a_test.train)
    assert runner(py_modules=[training_of_a_test]).run(training_of_a_test.train) == 5
    del sys.modules["training_of_a_test"]


def test_tracebacks_show_the_lines_of_notebook_cells(runner):
    source = "def train():\n    wanted = 'a line of the cell'\n    raise ValueError(wanted)\n"
    name = "/tmp/ipykernel_1/cell.py"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    namespace = {"__name__": "__main__"}
    exec(compile(source, name, "exec"), namespace)
    with pytest.raises(TrainingFailedError) as caught:
        runner().run(namespace["train"])
    del linecache.cache[name]
    assert "raise ValueError(wanted)" in str(caught.value)
