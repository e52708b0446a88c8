"""The runner's arguments."""

from pathlib import Path

import numpy as np
import pytest

from spark_tensorflow_distributor import ConfigurationError, MirroredStrategyRunner
from spark_tensorflow_distributor.config import RunnerConfig, check_whole_number, renamed_arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_slots": 0}, "num_slots is 0"),
        ({"num_slots": 1, "local_mode": "false"}, r"local_mode is 'false' \(str\); it must be True or False"),
        ({"num_slots": 1, "use_gpu": "no"}, "use_gpu is 'no'"),
        ({"num_slots": 1, "use_custom_strategy": "0"}, "use_custom_strategy is '0'"),
        ({"num_slots": 1, "progress": "no"}, "progress is 'no'"),
        ({"num_slots": -1}, "at least 1"),
        ({"num_slots": 1.5}, "whole number"),
        ({"num_slots": True}, "whole number"),
        ({"num_slots": "2"}, "'2'"),
        ({"num_slots": 2, "max_restarts": -1}, "max_restarts"),
        ({"num_slots": 2, "min_slots": 3}, "min_slots=3"),
        ({"num_slots": 2, "start_timeout": 0}, "start_timeout"),
        ({"num_slots": 2, "stall_timeout": "1"}, "stall_timeout"),
        ({"num_slots": 2, "gpu_resource_name": ""}, "gpu_resource_name"),
        ({"num_slots": 2, "log_to_driver": "stdout"}, "log_to_driver is 'stdout'"),
        ({"num_slots": 2, "gradient_compression": "int8"}, "gradient_compression is 'int8'"),
        ({"num_slots": 2, "env": {"A": 1}}, "env"),
        ({"num_slots": 2, "env": ["A"]}, "env"),
        ({"num_slots": 2, "env": {"TF_CONFIG": "{}"}}, "TF_CONFIG"),
        ({"num_slots": 2, "local_mode": True, "use_gpu": False}, "num_slots=1"),
    ],
)
def test_invalid_arguments_are_named(arguments, words):
    with pytest.raises(ConfigurationError, match=words):
        RunnerConfig(**arguments)
    with pytest.raises(ValueError, match=words):  # as in 1.0.0
        RunnerConfig(**arguments)


def test_whole_numbers():
    for value in (1, 2, np.int64(2)):
        check_whole_number("epochs", value, 1)
    for value, text in [(0, "epochs is 0; it must be at least 1"), (1.0, "whole number"), (True, "whole number")]:
        with pytest.raises(ConfigurationError, match=text):
            check_whole_number("epochs", value, 1)


def test_arguments_are_keyword_only():
    with pytest.raises(TypeError):
        MirroredStrategyRunner(2)
    with pytest.raises(TypeError, match="num_slots"):
        MirroredStrategyRunner()


def test_env_is_a_mapping_and_is_copied():
    env = {"A": "1"}
    config = RunnerConfig(1, use_gpu=False, env=env)
    env["A"] = "2"
    assert config.env == {"A": "1"}
    with pytest.raises(ConfigurationError, match="env is a str; it must be a mapping"):
        MirroredStrategyRunner(num_slots=1, use_gpu=False, env="x")


def test_folders_are_strings_or_paths():
    config = RunnerConfig(1, checkpoint_dir=Path("a") / "b", log_dir=Path("logs"))
    assert (config.checkpoint_dir, config.checkpoint_path, config.log_dir) == ("a/b", "a/b", "logs")
    assert RunnerConfig(1, checkpoint_dir="gs://bucket/a").checkpoint_path == "gs://bucket/a"
    assert RunnerConfig(1).checkpoint_path is None
    for folder in ("", b"a", 1):
        with pytest.raises(ConfigurationError, match="it must be a path or URL that all hosts can reach"):
            RunnerConfig(1, checkpoint_dir=folder)
    for url in ("s3://bucket/a", "file:///mnt/a"):
        with pytest.raises(ConfigurationError, match=f"pathlib removes a slash from URLs. Pass '{url}' as a string"):
            RunnerConfig(1, checkpoint_dir=Path(url))


def test_arguments_without_effect_are_found(caplog):
    assert RunnerConfig(num_slots=2, min_slots=1, max_restarts=1).warnings == []
    assert RunnerConfig(num_slots=1, local_mode=True, use_gpu=False).warnings == []
    MirroredStrategyRunner(num_slots=2, use_gpu=False, min_slots=1)
    assert "min_slots=1 has no effect with max_restarts=0" in caplog.text
    MirroredStrategyRunner(num_slots=1, use_gpu=False, local_mode=True, max_restarts=2)
    assert "max_restarts=2 has no effect with local_mode=True" in caplog.text


def test_messages_take_the_names_of_the_caller():
    names = {"num_slots": "numSlots", "use_gpu": "useGpu", "use_gpu=True": "GPUs"}
    text = "use_gpu=True, use_gpu=False, num_slots=2, min_num_slots, x.num_slots, num_slots2"
    assert renamed_arguments(text, names) == "GPUs, useGpu=False, numSlots=2, min_num_slots, x.num_slots, num_slots2"
