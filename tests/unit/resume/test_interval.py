"""When checkpoints are due."""

import pytest

from spark_tensorflow_distributor import ConfigurationError
from spark_tensorflow_distributor.config import RunnerConfig
from spark_tensorflow_distributor.resume.interval import CheckpointInterval, parse


def test_seconds_become_steps():
    pace = parse(30)
    assert pace.first == 10
    assert not pace.is_due(1.0)
    assert pace.steps_until_next(0.5, 5.0, 0.0) == 50  # 25 seconds are left
    assert pace.is_due(29.0)
    assert pace.steps_until_next(0.5, 0.0, 0.01) == 60


def test_a_wrong_guess_of_the_speed_is_not_followed_at_once():
    assert parse(30).steps_until_next(0.001, 0.0, 0.0) == 80


def test_training_stands_still_for_a_hundredth_of_its_time_at_most():
    pace = parse(30)
    pace.steps_until_next(1.0, 0.0, 0.0)
    assert pace.steps_until_next(1.0, 0.0, 1.5) == 150


def test_slow_steps_are_checkpoints_each():
    assert parse(10).steps_until_next(60.0, 0.0, 0.0) == 1


def test_steps_are_steps():
    pace = parse("500 steps")
    assert pace == CheckpointInterval(steps=500)
    assert pace.first == pace.steps_until_next(9.0, 9.0, 9.0) == 500
    assert pace.is_due(0.0)
    assert parse("1 step").first == 1


@pytest.mark.parametrize("wrong", [0, -1, True, "", "ten steps", "0 steps", "5 minutes", None])
def test_what_is_refused(wrong):
    with pytest.raises(ConfigurationError, match="checkpoint_every is"):
        RunnerConfig(2, use_gpu=False, checkpoint_every=wrong)


@pytest.mark.parametrize("wrong", ["", 5, ["a"]])
def test_a_folder_is_a_text(wrong):
    with pytest.raises(ConfigurationError, match="checkpoint_dir is"):
        RunnerConfig(2, use_gpu=False, checkpoint_dir=wrong)
