"""Mistakes in calls get advice; the result of run() has the type of the function's value."""

import inspect
import subprocess
import sys

import pytest

from spark_tensorflow_distributor import CallError, ConfigurationError, MirroredStrategyRunner
from spark_tensorflow_distributor.runtime.driver.pickling import check_arguments


def train(train_data, epochs=1):
    return epochs


@pytest.fixture
def runner():
    return MirroredStrategyRunner(num_slots=1, local_mode=True, use_gpu=False)


def test_positional_arguments_of_the_constructor():
    with pytest.raises(CallError, match=r"value 2 was passed by position\. Call .*\(num_slots=2, \.\.\.\)") as caught:
        MirroredStrategyRunner(2)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(TypeError, match="num_slots"):
        MirroredStrategyRunner()
    parameters = inspect.signature(MirroredStrategyRunner).parameters.values()
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.KEYWORD_ONLY}


def test_positional_arguments_of_run(runner):
    with pytest.raises(CallError, match=r"got an object by position. Call run\(train, train_data=\.\.\., epochs=3\)"):
        runner.run(train, object(), 3)
    with pytest.raises(CallError, match=r"run\('a.py', args="):
        runner.run("a.py", "--epochs", "3")
    with pytest.raises(CallError, match=r"run\(<lambda>, x=1, name=2, name=3, \.\.\.\)"):
        runner.run(lambda x: x, 1, 2, 3, 4)


def test_arguments_that_do_not_fit_the_function():
    for names, text in (([], "called without arguments: missing"), (["y", "z"], "called with the arguments y, z: ")):
        with pytest.raises(ConfigurationError, match=rf"train\(train_data, epochs=1\) cannot be {text}"):
            check_arguments(train, names)


def test_the_result_is_typed(tmp_path):
    pytest.importorskip("mypy")
    program = (
        "from spark_tensorflow_distributor import MirroredStrategyRunner\n"
        "def train(x: int) -> str: return str(x)\n"
        "runner = MirroredStrategyRunner(num_slots=2)\n"
        "reveal_type(runner.run(train, x=1))\n"
        "reveal_type(runner.run('train.py', args=['1']))\n"
    )
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", f"--cache-dir={tmp_path}", "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert '"str"' in done.stdout, done.stdout
    assert '"None"' in done.stdout
