"""The command line, from words to arguments."""

import inspect
from argparse import Namespace
from types import SimpleNamespace

import pytest

from spark_tensorflow_distributor import ConfigurationError, MirroredStrategyRunner
from spark_tensorflow_distributor.cli import main as command
from spark_tensorflow_distributor.cli.options import naming_options, pairs, runner_arguments
from spark_tensorflow_distributor.cli.spark import default_master, session


@pytest.fixture
def parsed(monkeypatch):
    """Return a function that parses a command line, without running the command."""

    def parse(*words):
        found = []
        for module in (command.run, command.doctor, command.demo):
            name = module.__name__.rpartition(".")[2]
            monkeypatch.setattr(module, name, lambda options: found.append(options) or 0)
        assert command.main(words) == 0
        return found[0]

    return parse


def test_what_follows_the_script_is_the_scripts(parsed):
    options = parsed("run", "--num-slots", "8", "--cpu", "train.py", "--epochs", "5", "--num-slots", "3")
    assert options.script == "train.py"
    assert options.args == ["--epochs", "5", "--num-slots", "3"]
    assert runner_arguments(options)["num_slots"] == 8
    assert runner_arguments(options)["use_gpu"] is False


def test_arguments_of_the_runner(parsed):
    words = ["--checkpoint-every", "500 steps", "--env", "A=b=c", "--py-module", "features", "--quiet", "--no-progress"]
    arguments = runner_arguments(parsed("run", "--num-slots", "2", *words, "train.py"))
    assert arguments["checkpoint_every"] == "500 steps"
    assert arguments["env"] == {"A": "b=c"}
    assert arguments["py_modules"] == ["features"]
    assert arguments["log_to_driver"] is False
    assert arguments["progress"] is False
    assert arguments["use_gpu"] is True
    assert runner_arguments(parsed("run", "--num-slots", "2", "train.py"))["checkpoint_every"] == 30.0
    seconds = parsed("run", "--num-slots", "2", "--checkpoint-every", "1e2", "train.py")
    assert runner_arguments(seconds)["checkpoint_every"] == 100.0


def test_defaults_are_those_of_the_runner(parsed):
    defaults = {
        name: each.default
        for name, each in inspect.signature(MirroredStrategyRunner).parameters.items()
        if each.default is not inspect.Parameter.empty
    }
    arguments = runner_arguments(parsed("run", "--num-slots", "2", "train.py"))
    empty = {"env": {}, "py_modules": []}
    assert {name: value for name, value in arguments.items() if value != {**defaults, **empty}.get(name, value)} == {}
    assert set(arguments) - set(defaults) == {"num_slots"}


def test_mistakes_end_with_status_2(capsys):
    for words in (["run", "train.py"], ["dance"], []):
        with pytest.raises(SystemExit) as ended:
            command.main(words)
        assert ended.value.code == 2
    capsys.readouterr()
    assert command.main(["demo", "--report", "page.txt"]) == 2
    assert "page.txt" in capsys.readouterr().err


def test_pairs():
    assert pairs(["spark.a=1", "b=x=y"], "--conf") == {"spark.a": "1", "b": "x=y"}
    for text in ("spark.a", "=1"):
        with pytest.raises(ConfigurationError, match="--conf"):
            pairs([text], "--conf")


def test_messages_name_options_instead_of_arguments():
    text = "num_slots=9 is too many; use num_slots=2, use_gpu=False or gpu_resource_name. my.num_slots, env, num_slotss"
    assert naming_options(text) == (
        "--num-slots 9 is too many; use --num-slots 2, --cpu or --gpu-resource-name. my.num_slots, env, num_slotss"
    )


def test_messages_name_only_options_that_exist(parsed, capsys):
    named = {naming_options(name) for name in runner_arguments(parsed("run", "--num-slots", "2", "train.py"))}
    with pytest.raises(SystemExit):
        command.main(["run", "--help"])
    shown = capsys.readouterr().out
    assert len(named) > 10
    assert [
        name for name in named if name.startswith("-") and f"{name} " not in shown and f"{name}]" not in shown
    ] == []


def test_the_master_is_local_only_if_nobody_has_configured_spark():
    assert default_master({}, 3) == "local[3]"
    for name in ("PYSPARK_GATEWAY_PORT", "SPARK_HOME", "SPARK_CONF_DIR", "SPARK_REMOTE", "PYSPARK_SUBMIT_ARGS"):
        assert default_master({name: "set"}, 3) is None


@pytest.mark.parametrize("words", [{"remote": "sc://host"}, {}, {"master": "local[1]"}])
def test_a_client_gets_no_settings_of_a_driver(monkeypatch, words):
    class Builder:
        def __init__(self):
            self.settings = {}

        def config(self, key, value):
            self.settings[key] = value
            return self

        appName = remote = master = lambda self, value: self

        def getOrCreate(self):
            return SimpleNamespace(stop=lambda: None)

    from pyspark.sql import SparkSession

    builder = Builder()
    monkeypatch.setattr(SparkSession, "builder", builder)
    monkeypatch.setattr("spark_tensorflow_distributor.cli.spark.check_answers", lambda url: None)
    monkeypatch.setenv("PYSPARK_PYTHON", "python")
    if not words.get("remote"):
        monkeypatch.setenv("SPARK_REMOTE", "sc://host")
    with session(Namespace(**{"master": None, "remote": None, "conf": ["spark.a=1"], **words}), 1):
        assert ("spark.ui.showConsoleProgress" in builder.settings) == ("master" in words)
    assert builder.settings["spark.a"] == "1"


def test_failures_have_status_1_and_interrupts_130(monkeypatch, capsys):
    from spark_tensorflow_distributor import ClusterError

    def fails(error):
        def run(options: Namespace) -> int:
            raise error

        return run

    note = ClusterError("too small\x1b[31m")
    note.__notes__ = ["a note"]
    monkeypatch.setattr(command.run, "run", fails(note))
    assert command.main(["run", "--num-slots", "1", "train.py"]) == 1
    assert capsys.readouterr().err == "ClusterError: too small\na note\n"
    monkeypatch.setattr(command.run, "run", fails(KeyboardInterrupt()))
    assert command.main(["run", "--num-slots", "1", "train.py"]) == 130


def test_the_launcher_is_a_file(capsys):
    assert command.main(["launcher"]) == 0
    path = capsys.readouterr().out.strip()
    with open(path, encoding="utf-8") as file:
        assert "spark-submit" in file.read()
