"""House rules that can be checked automatically."""

import ast
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import spark_tensorflow_distributor as std
from helpers import STUBS
from spark_tensorflow_distributor.runtime import shipping

ROOT = Path(std.__file__).parent
MODULES = sorted(
    "spark_tensorflow_distributor." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in ROOT.rglob("*.py")
    if path.name != "__init__.py"
)


# Modules that handle rows are loaded only if there are any.
WITH_NUMPY = [
    f"spark_tensorflow_distributor.{name}"
    for name in (
        "data.intake",
        "data.spool",
        "data.preprocessing",
        "process_group.arrays",
        "process_group.connect",
        "process_group.group",
        "process_group.local",
        "process_group.remote",
        "process_group.transfers",
        "training.random_state",
        "resume.callback_state",
        "resume.manual",
        "resume.random_replay",
        "resume.resume_point",
        "resume.archive",
        "resume.snapshot",
        "resume.store",
        "resume.variable_specs",
        "resume.writer",
        "runtime.trainer.main",
    )
]

# Loaded only in processes that run TensorFlow, like any other TensorFlow code.
WITH_TENSORFLOW = [
    f"spark_tensorflow_distributor.{name}"
    for name in (
        "data.dataset",
        "data.store",
        "inference.loading",
        "inference.predictor",
        "ml.groups.graph",
        "ml.groups.training",
        "resume.example_inputs",
        "resume.fit_saver",
        "resume.fit_session",
        "resume.fit_tracker",
        "resume.held_variables",
        "resume.model_state",
        "resume.user_optimizers",
        "runtime.trainer.preload",
        "training.batch_notes",
        "training.batch_parts",
        "training.calls_alone",
        "training.compared_steps",
        "training.without_effects",
        "training.device_data",
        "training.collectives",
        "training.socket_collectives",
        "training.gradient_mean",
        "training.graph_origins",
        "training.gradient_recorder",
        "training.joint_calls",
        "training.kept_iterators",
        "training.loss_weighting",
        "training.keras_step",
        "training.other_strategies",
        "training.own_rows",
        "training.part_data",
        "training.port_closing",
        "training.replica",
        "training.replica_hooks",
        "training.replica_step",
        "training.row_choice",
        "training.same_batches",
        "training.shard_feeding",
        "training.step_function",
        "training.stopping",
        "training.strategy",
        "training.tf_collectives",
        "training.variable_sync",
    )
]
WITH_TENSORFLOW += [name for name in MODULES if name.startswith("spark_tensorflow_distributor.training.patches.")]


# Their classes derive from those of pyspark.ml, which imports NumPy, pandas and PyArrow; only the driver loads them.
WITH_SPARK = [
    f"spark_tensorflow_distributor.ml.{name}"
    for name in (
        *("classification", "estimator", "folders", "groups.params", "groups.spark_model", "model", "params"),
        *("persistence", "regression", "running"),
    )
]


def test_no_module_imports_tensorflow_and_the_agent_and_trainer_no_spark():
    """Imports each module in a fresh process; a shared one would hide which module imported what."""
    program = (
        "import importlib, json, os, sys\n"
        "found = {}\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        importlib.import_module(name)\n"
        "        heavy = ['tensorflow', 'keras', 'tf_keras', 'pyspark', 'tqdm', 'pandas', 'pyarrow', 'numpy']\n"
        "        if name in json.loads(sys.argv[2]): heavy.remove('numpy')\n"
        "        if name in json.loads(sys.argv[3]): heavy = heavy[1:-1]\n"
        "        if name in json.loads(sys.argv[4]): heavy = heavy[:3] + ['tqdm']\n"
        "        bad = [m for m in heavy if m in sys.modules]\n"
        "        print(json.dumps([name, bad]), flush=True)\n"
        "        os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
    )
    arguments = [json.dumps(names) for names in (MODULES, WITH_NUMPY, WITH_TENSORFLOW, WITH_SPARK)]
    # The stub for TensorFlow is imported instantly, and imports nothing else.
    path = os.pathsep.join([STUBS, *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=env)
    loaded = dict(json.loads(line) for line in done.stdout.splitlines())
    assert sorted(loaded) == MODULES, done.stderr
    assert {name: bad for name, bad in loaded.items() if bad} == {}


def test_the_public_names():
    assert sorted(std.__all__) == std.__all__
    for name in std.__all__:
        assert getattr(std, name).__doc__
        assert name in dir(std)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        std.nothing  # noqa: B018


def test_all_errors_pickle():
    for name in std.__all__:
        cls = getattr(std, name)
        if isinstance(cls, type) and issubclass(cls, Exception):
            again = pickle.loads(pickle.dumps(cls("text")))
            assert type(again) is cls
            assert str(again) == "text"
            assert issubclass(cls, std.DistributorError)
    failure = std.WorkerFailure(1, "h", "exception", "m", exception=KeyError("k"))
    error = std.TrainingFailedError("t", {1: failure}, failure)
    error.__notes__ = ["a note"]
    again = pickle.loads(pickle.dumps(error))
    assert again.__notes__ == ["a note"]
    assert again.failures[1].message == "m"
    assert again.root_cause.rank == 1


def test_house_rules_in_the_source():
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"raise Exception\(|\bsys\.exit\(\)?$", text, re.M), path
        if path != ROOT / "runtime" / "driver" / "spark.py":
            assert not re.search(r"import .*SparkSession", text), path
        if path.parts[-2] != "driver":
            continue
        assert not re.search(r"^import tensorflow|^from tensorflow", text, re.M), path


def lines_without_docstring(function):
    """Return the number of a function's lines, with those of functions in it, and without its docstring."""
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    return lines - (first.end_lineno - first.lineno + 1) if ast.get_docstring(function) is not None else lines


def test_the_size_of_a_function():
    text = 'def outer():\n    """Summary.\n\n    Details.\n    """\n    def inner(): ...\n\n    return inner\n'
    assert lines_without_docstring(ast.parse(text).body[0]) == 4
    assert lines_without_docstring(ast.parse("def short(): ...").body[0]) == 1


def test_the_sizes_of_files_and_functions():
    functions = {}
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions[f"{path.name}:{node.lineno} {node.name}"] = lines_without_docstring(node)
    assert {name: lines for name, lines in functions.items() if lines > 60} == {}


def test_the_architecture_names_every_module():
    text = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
    rows = {row.split("`")[1]: row for row in text.splitlines() if row.startswith("| `")}
    modules = [path.relative_to(ROOT) for path in ROOT.glob("*/**/*.py") if path.stem != "__init__"]
    in_folders = [path for path in modules if path.parent.name not in ("patches", "views")]  # described as a whole
    assert [path for path in in_folders if f"`{path.stem}`" not in rows.get(f"{path.parent.as_posix()}/", "")] == []


def test_the_package_imports_from_memory_where_it_is_not_installed():
    program = (
        "import json, sys\n"
        "boot = json.load(sys.stdin)\n"
        "space = {'__name__': 'x'}\n"
        "exec(boot['installer'], space)\n"
        "assert 'spark_tensorflow_distributor' not in sys.modules\n"
        "space['install']('spark_tensorflow_distributor', boot['sources'])\n"
        "space['install']('spark_tensorflow_distributor', boot['sources'])\n"
        "from spark_tensorflow_distributor import get_context\n"
        "from spark_tensorflow_distributor.runtime import shipping\n"
        "from spark_tensorflow_distributor.runtime.agent import task\n"
        "assert shipping.library_sources() == boot['sources']\n"
        "print(task.__spec__.loader.__class__.__name__)\n"
    )
    boot = {"installer": shipping.importer_source(), "sources": shipping.library_sources()}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], input=json.dumps(boot), capture_output=True, text=True
    )
    assert done.stdout == "MemoryImporter\n", done.stderr


def test_another_version_is_replaced():
    namespace = {"__name__": "x"}
    exec(shipping.importer_source(), namespace)
    package = "package_of_this_test"
    namespace["install"](package, {"__init__.py": "value = 1", "part/__init__.py": "", "part/leaf.py": "value = 2"})
    leaf = __import__(f"{package}.part.leaf", fromlist=["value"])
    assert leaf.value == 2
    namespace["install"](package, {"__init__.py": "value = 3"})
    assert __import__(package).value == 3
    sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "package", None) != package]
    del sys.modules[package]
