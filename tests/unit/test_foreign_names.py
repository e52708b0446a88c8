"""Checks in the sources that private names of other libraries are used only where it is known, and why."""

import ast
from collections.abc import Iterator

import pytest

from foreign_names import defined_names, foreign_names
from sources import MODULES, ROOT, imports_of, parsed
from spark_tensorflow_distributor.training.private_names import PRIVATE_MODULES

# In training/, private names of TensorFlow and Keras are allowed if they are in the table that a trainer checks when it
# starts. Everything else that is not ours, by file or package; each with the reason why there is no other way.
ALLOWED = {
    # TensorFlow and Keras.
    "data/transformations.py": [
        ("_inputs", "tf.data shows neither what a dataset was made from (in the table, too)"),
        ("_batch_size", "nor with what argument (in the table, too); unknown without the name"),
    ],
    "training/fit_hooks.py": [
        ("_use_cached_eval_dataset", "an argument, which the table cannot check; without it, no call is a validation"),
    ],
    "resume/callback_state.py": [("_model", "not read: an attribute of callbacks that checkpoints leave out")],
    # Spark.
    "runtime/driver/spark.py": [
        ("_jsc", "PySpark shows neither the executors nor the slots of barrier stages"),
        ("_jvm", "nor the heap and the version of the driver's Java"),
        ("_build_java_profile", "the slots of a resource profile depend on the profile that Spark registers"),
    ],
    "data/frames.py": [
        ("_jdf", "PySpark shows no plan, and no number of rows that Spark knows without counting"),
        ("_explain_string", "explain() prints a plan instead of returning it"),
    ],
    "inference/predict.py": [("_parse_datatype_string", "DataType.fromDDL exists since PySpark 4.0")],
    "ml/files.py": [
        ("_jvm", "PySpark writes tables only, and models are files in Hadoop's file systems"),
        ("_jsparkSession", "these file systems have the session's settings"),
    ],
    "ml/": [
        ("_dummy", "pyspark.ml gives its Params, by which users know ours, this parent"),
        ("_set", "pyspark.ml's setters use it; set() names no Param in its errors"),
        ("_setDefault", "pyspark.ml has no other way to set defaults"),
        ("_copyValues", "copy() returns the same class, and a model is not its estimator"),
        ("_resetUid", "a model has its estimator's uid, and a loaded object the saved one"),
    ],
    "runtime/barrier.py": [
        ("_taskContext", "PySpark sets up its task contexts in its own Python worker only"),
        ("_conn_info", "a task context connects to the JVM with it; carried over if it exists"),
        ("_port", "the same in older releases"),
        ("_secret", "the same in older releases"),
    ],
    "runtime/spark_objects.py": [
        ("_accumulatorRegistry", "PySpark sets up accumulators in its own Python worker only"),
        ("_deserialize_accumulator", "the same"),
        ("_value", "an accumulator's value is not public in a task"),
        ("_jbroadcast", "a broadcast variable's id is not public"),
        ("_path", "nor is its file; without the name, the value is written again"),
        ("_is_running_on_worker", "PySpark sets up SparkFiles in its own Python worker only"),
        ("_root_directory", "the same"),
    ],
    # Others.
    "tracking/mlflow.py": [("_get_experiment_id", "MLflow does not show the active experiment; 0 without the name")],
    "runtime/trainer/main.py": [("_run_exitfuncs", "a fork ends with os._exit, which runs no exit handlers")],
    "ml/fingerprint.py": [("_abc_impl", "not read: an entry of Python's abstract classes that is left out")],
    # Ours, from modules that the file does not import.
    "ml/groups/": [
        ("_value", "a method of our estimators and models"),
        ("_is_classifier", "an attribute of our estimators"),
    ],
    "runtime/shipping.py": [("_importer", "our module, before the package can be imported")],
}

# The private packages of TensorFlow and Keras; the table imports what others need.
PACKAGES = ("tensorflow.python", "keras.src", "tf_keras.src")

IN_TABLE = {part for entry in PRIVATE_MODULES for name in (*entry.names, *entry.attributes) for part in name.split(".")}
TREES = {module: parsed(path.read_text()) for module, path in MODULES.items()}
DEFINED = {module: defined_names(tree) for module, tree in TREES.items()}


def uses() -> Iterator[tuple[str, str]]:
    """Yield the file and the name of each use."""
    for module, path in MODULES.items():
        imported = {*imports_of(path.read_text(), module)}
        ours = DEFINED[module].union(*(DEFINED[each] for each in imported))
        for name in foreign_names(TREES[module], ours):
            yield path.relative_to(ROOT).as_posix(), name


def test_private_names_are_used_only_where_allowed():
    found = {(file, name) for file, name in uses() if not (file.startswith("training/") and name in IN_TABLE)}
    allowed = [(place, name) for place, names in ALLOWED.items() for name, _ in names]
    unknown = {(file, name) for file, name in found if not any(file.startswith(p) and name == n for p, n in allowed)}
    assert unknown == set()
    unused = {(p, n) for p, n in allowed if not any(file.startswith(p) and name == n for file, name in found)}
    assert unused == set()


def test_private_packages_are_named_in_the_table_only():
    found = set()
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names = [node.value]
            found |= {module for name in names if f"{name}.".startswith(tuple(f"{each}." for each in PACKAGES))}
    assert found == {"training.private_names"}


@pytest.mark.parametrize(
    "text",
    [
        "frame._name",
        "frame.parts[0]._name()",
        "Frame._name = None",
        "def replacement(self):\n    self._name = 1",
        "class Ours(Theirs):\n    def method(self):\n        return self._name",
        "class Ours:\n    def method(self, other):\n        other._name = 1",
        "getattr(frame, '_name', None)",
        "setattr(Frame, '_name', replaced)",
        "[vars(frame).get(name) for name in ('public', '_name')]",
        "monkeypatch.setattr(Frame, '_name', None)",
        "from theirs import _name",
        "import theirs._name as name",
        "from theirs._name import public",
    ],
)
def test_a_private_name_of_others_is_found(text):
    tree = ast.parse(text)
    assert {*foreign_names(tree, defined_names(tree))} == {"_name"}


@pytest.mark.parametrize(
    "text",
    [
        "frame.name, frame.__name__, frame.__dict__, frame._",
        "def _name(): ...\nours._name()",
        "_name = 1\nmodule._name",
        "_name: int = 1\nmodule._name",
        "_other, _name = 1, 2\nmodule._name",
        "class Ours:\n    _name = 1\nOurs._name",
        "class Ours:\n    _name: int\nours._name",
        "class Ours:\n    def method(self):\n        self._name = 1\nours._name",
        "class Ours:\n    def method(self):\n        self.public, self._name = 1, 2\nours._name",
        "class Ours:\n    @classmethod\n    def make(cls):\n        cls._name = 1\nours._name",
        "class _name: ...\nisinstance(each, module._name)",
        "from .ours import _name\nfrom . import _name",
        "os._exit(1), sys._getframe(), named_tuple._replace(field=1)",
        "setattr(frame, '_spark_tensorflow_mark', True)",
        "'a text with _name in it', f'{made}_name'",
    ],
)
def test_a_name_of_ours_is_not_found(text):
    tree = ast.parse(text)
    assert {*foreign_names(tree, defined_names(tree))} == set()


def test_names_of_imported_modules_are_ours():
    text = "class Ours(Base):\n    def method(self):\n        return self._name, self._other"
    assert [*foreign_names(ast.parse(text), {"_name"})] == ["_other"]
