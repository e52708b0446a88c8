"""The interval between checkpoints."""

import math
import re

import pytest

from spark_tensorflow_distributor import ConfigurationError
from spark_tensorflow_distributor.config import RunnerConfig
from spark_tensorflow_distributor.resume.interval import CheckpointInterval


def test_seconds_become_steps():
    interval = CheckpointInterval.parse(30)
    assert interval == CheckpointInterval(seconds=30.0)
    assert not interval.is_due(1.0)
    assert interval.is_due(29.0)
    assert interval.steps_until_next(0.5, 5.0, 0.0) == 50  # 25 seconds remain
    assert interval.steps_until_next(0.5, 0.0, 0.01) == 60


def test_checkpoints_take_at_most_a_hundredth_of_the_time():
    assert CheckpointInterval.parse(30).steps_until_next(1.0, 0.0, 1.5) == 150


def test_slow_training_saves_after_each_step():
    assert CheckpointInterval.parse(10).steps_until_next(60.0, 0.0, 0.0) == 1


def test_an_interval_in_steps_is_kept():
    interval = CheckpointInterval.parse("500 steps")
    assert interval == CheckpointInterval(steps=500)
    assert interval.steps_until_next(9.0, 9.0, 9.0) == 500
    assert interval.is_due(0.0)
    assert CheckpointInterval.parse("1 step").steps == 1


def test_the_runners_setting_is_parsed_once():
    config = RunnerConfig(2, use_gpu=False, checkpoint_every="500 steps")
    assert (config.checkpoint_every, config.checkpoint_interval) == ("500 steps", CheckpointInterval(steps=500))


@pytest.mark.parametrize("wrong", [0, -1, True, "", "ten steps", "0 steps", "5 minutes", None])
def test_invalid_intervals_are_rejected(wrong):
    with pytest.raises(ConfigurationError, match="checkpoint_every is"):
        RunnerConfig(2, use_gpu=False, checkpoint_every=wrong)


@pytest.mark.parametrize("wrong", ["", 5, ["a"]])
def test_invalid_folders_are_rejected(wrong):
    with pytest.raises(ConfigurationError, match="checkpoint_dir is"):
        RunnerConfig(2, use_gpu=False, checkpoint_dir=wrong)


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, True, "5", "0 steps", "x steps", None])
def test_other_values_are_refused(value):
    with pytest.raises(ValueError, match=re.escape(str(value))):
        CheckpointInterval.parse(value)
