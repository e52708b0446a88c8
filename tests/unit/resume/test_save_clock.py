"""At which steps the ranks meet, and when they save."""

import itertools

import pytest

from spark_tensorflow_distributor.resume.interval import CheckpointInterval
from spark_tensorflow_distributor.resume.save_clock import SaveClock


class Training:
    """Steps of equal length on a clock of its own."""

    def __init__(self, interval, seconds_per_step=0.5, save_seconds=0.0):
        self.time, self.step, self.saves = 100.0, 0, []
        self.seconds_per_step, self.save_seconds = seconds_per_step, save_seconds
        self.clock = SaveClock(interval, now=lambda: self.time)
        self.meetings = []

    def run(self, steps):
        for _ in range(steps):
            self.step += 1
            self.time += self.seconds_per_step
            self.clock.advance(1)
            if self.clock.is_meeting_due:
                self.meet()
        return self

    def meet(self):
        self.meetings.append(self.step)
        is_due, steps = self.clock.plan(write_seconds=self.save_seconds)
        if is_due:
            self.saves.append(self.step)
            self.clock.saved(capture_seconds=0.0)
        self.clock.schedule(steps)


def test_the_first_meeting_measures_the_speed():
    training = Training(CheckpointInterval(seconds=30.0)).run(200)
    assert training.meetings == [10, 60, 120, 180]
    assert training.saves == [60, 120, 180]


def test_a_wrong_estimate_of_the_speed_is_not_followed_at_once():
    training = Training(CheckpointInterval(seconds=30.0), seconds_per_step=0.001).run(10)
    training.seconds_per_step = 1.0  # only the beginning was fast
    training.run(150)
    assert training.meetings[:2] == [10, 90]
    assert training.saves[0] == 90


def test_an_expensive_checkpoint_delays_the_next():
    training = Training(CheckpointInterval(seconds=30.0), save_seconds=1.0).run(500)
    assert [later - earlier for earlier, later in itertools.pairwise(training.saves)] == [200, 200]


def test_a_checkpoint_at_the_end_of_an_epoch_counts():
    training = Training(CheckpointInterval(seconds=30.0)).run(59)
    training.clock.saved(capture_seconds=0.0)
    training.clock.epoch_saved()
    training.run(80)
    assert training.meetings[:3] == [10, 60, 119]
    assert training.saves == [119]


@pytest.mark.parametrize("seconds_per_step", [0.001, 60.0])
def test_an_interval_in_steps_is_independent_of_the_speed(seconds_per_step):
    training = Training(CheckpointInterval(steps=7), seconds_per_step).run(30)
    assert training.saves == training.meetings == [7, 14, 21, 28]


def test_an_interval_in_steps_counts_from_the_end_of_an_epoch():
    training = Training(CheckpointInterval(steps=7)).run(10)
    training.clock.epoch_saved()
    training.run(10)
    assert training.saves == [7, 17]
