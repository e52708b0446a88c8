"""``local_mode`` without Spark and TensorFlow."""

import os
import sys

import pytest

from spark_tensorflow_distributor import DistributorError, GpuConfigurationError, MirroredStrategyRunner, get_context
from spark_tensorflow_distributor.config import RunnerConfig
from spark_tensorflow_distributor.runtime.driver.local import local_gpus


@pytest.fixture
def runner():
    return MirroredStrategyRunner(num_slots=1, local_mode=True, use_gpu=False, use_custom_strategy=True)


def test_the_function_runs_here_and_the_environment_is_restored(runner):
    def train(x):
        os.environ["LEFT_BEHIND"] = "1"
        return x, os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"], get_context().world_size

    assert runner.run(train, x=3) == (3, os.getpid(), "", 1)
    assert "LEFT_BEHIND" not in os.environ
    with pytest.raises(DistributorError, match="no"):
        get_context()


def test_errors_come_as_they_are(runner):
    with pytest.raises(ZeroDivisionError):
        runner.run(lambda: 1 / 0)


def test_a_script(runner, tmp_path, capsys):
    path = tmp_path / "train.py"
    path.write_text("import sys\nif __name__ == '__main__':\n    print(sys.argv[1:])\n")
    before = sys.argv[:]
    assert runner.run(str(path), args=["--x", "1"]) is None
    assert capsys.readouterr().out == "['--x', '1']\n"
    assert sys.argv == before


def test_the_drivers_gpus(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    config = RunnerConfig(2, local_mode=True)
    assert local_gpus(config, ["0", "1", "2"]) == ("0", "1")
    with pytest.raises(GpuConfigurationError, match="the driver has 1"):
        local_gpus(config, ["0"])
    with pytest.raises(GpuConfigurationError, match=r"spark\.driver\.resource\.gpu\.amount"):
        local_gpus(config, None)
