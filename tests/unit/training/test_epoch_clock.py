"""The duration and the speed of an epoch."""

import pytest

from helpers import clock_of
from spark_tensorflow_distributor.training import epoch_clock
from spark_tensorflow_distributor.training.epoch_clock import EpochClock, restored_entries


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    return clock_of(monkeypatch, epoch_clock)


def test_an_epoch_with_an_evaluation(clock):
    epoch = EpochClock(32)
    for number in range(2):
        epoch.begin()
        for count in (1, 3):
            epoch.skipped()  # is called before every step
            clock(1.0)
            epoch.after_step(count)
        clock(6.0)
        entry = epoch.entry(1, number, {"loss": 0.5, "shape": [1, 2]})
        assert entry == {"fit": 1, "epoch": number, "logs": {"loss": 0.5}, "seconds": 8.0, "rows_per_second": 64.0}


def test_the_skipped_steps_of_a_resumed_epoch_do_not_count(clock):
    epoch = EpochClock(32)
    epoch.begin()
    clock(9.0)
    epoch.skipped()
    clock(1.0)
    epoch.after_step(1)
    entry = epoch.entry(0, 3, None)
    assert (entry["seconds"], entry["rows_per_second"]) == (10.0, 32.0)


def test_a_speed_that_is_not_known(clock):
    epoch = EpochClock(None)
    epoch.begin()
    clock(1.0)
    epoch.after_step(1)
    assert epoch.entry(0, 0, {})["rows_per_second"] is None


def test_the_history_of_a_checkpoint():
    history = {"loss": [0.5, 0.25], "val_loss": [0.75]}
    assert restored_entries(2, [4, 5], history) == [
        {"fit": 2, "epoch": 4, "logs": {"loss": 0.5}, "seconds": None, "rows_per_second": None},
        {"fit": 2, "epoch": 5, "logs": {"loss": 0.25}, "seconds": None, "rows_per_second": None},
    ]
