"""The Python of local workers is checked before anything starts."""

import sys

import pytest

from spark_tensorflow_distributor import ClusterError
from spark_tensorflow_distributor.runtime.driver.interpreter import check_local_python


@pytest.fixture
def interpreter(tmp_path):
    """Return a function that makes an executable which answers as another Python would."""

    def make(name, answer):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho '{answer}'\n")
        path.chmod(0o755)
        return str(path)

    return make


def version(minor):
    return f"[{sys.version_info[0]}, {minor}]"


SAME = version(sys.version_info[1])


def test_an_interpreter_that_suits(interpreter):
    check_local_python(sys.executable, {})
    check_local_python(interpreter("same", f"[{SAME}, []]"), {})
    check_local_python(interpreter("talks", "hello"), {})  # Spark's own error is better than a guess


def test_refusals_take_two_lines(interpreter, monkeypatch):
    monkeypatch.setenv("PYSPARK_PYTHON", "/nowhere/python3")
    for executable, words in [
        ("/nowhere/python3", "which is not an executable file"),
        (interpreter("other", f"[{version(99)}, []]"), "which is Python 3.99"),
        (interpreter("bare", f'[{SAME}, ["pyarrow", "tensorflow"]]'), "which has no pyarrow, no tensorflow"),
    ]:
        with pytest.raises(ClusterError, match=words) as caught:
            check_local_python(executable, {})
        first, second = str(caught.value).split("\n")
        assert f"the driver is Python {sys.version_info[0]}.{sys.version_info[1]} at {sys.executable}." in first
        assert second.startswith("PYSPARK_PYTHON is '/nowhere/python3'. Before the SparkSession starts, set os.environ")


def test_it_says_that_the_variable_is_not_set(interpreter, monkeypatch):
    monkeypatch.delenv("PYSPARK_PYTHON", raising=False)
    with pytest.raises(ClusterError, match="PYSPARK_PYTHON is not set"):
        check_local_python(interpreter("old", f"[{version(1)}, []]"), {})


def test_the_environment_of_the_run_counts(tmp_path):
    link = tmp_path / "python"
    link.symlink_to(sys.executable)  # another path, so it is asked
    (tmp_path / "pandas.py").write_text("")
    with pytest.raises(ClusterError, match=r"has no .*tensorflow"):
        check_local_python(str(link), {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "", "PYTHONNOUSERSITE": "1"})
