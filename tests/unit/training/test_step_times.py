"""What steps take: waiting for a batch, collectives, and the rest."""

import time

import pytest

from spark_tensorflow_distributor.training import step_times as module
from spark_tensorflow_distributor.training.step_times import StepTimes


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(module.time, "perf_counter", lambda: Clock.now)
    monkeypatch.setattr(module.time, "time", lambda: 1e9 + Clock.now)
    return Clock


def measuring_collectives():
    times = StepTimes()
    times.sees_collectives = True
    return times


def step(times, clock, reading=0.0, collectives=0.0, own=0.0):
    times.begin()
    clock.now += reading
    times.has_batch()
    clock.now += own + collectives
    times.add_collective(collectives, 1000)
    times.end()


def test_the_parts_of_steps_add_up(clock):
    times = measuring_collectives()
    step(times, clock, reading=1.0, collectives=2.0, own=3.0)
    step(times, clock, reading=0.5, own=0.5)
    times.add_collective(9.0, 1)  # between the steps
    found = times.to_json()
    assert found["times"] == {"steps": 2, "loop": 7.0, "reading": 1.5, "collectives": 2.0, "bytes": 2001}
    assert found["steps"] == [[1, 1e9 + 100.0, 6.0, 1.0, 2.0], [2, 1e9 + 106.0, 1.0, 0.5, 0.0]]


def test_what_is_not_measured_is_not_reported(clock):
    times = StepTimes()
    step(times, clock, reading=1.0, own=3.0)
    assert times.to_json()["times"] == {"steps": 1, "loop": 4.0, "reading": 1.0}


def test_an_exchange_about_the_batch_is_reading(clock):
    times = measuring_collectives()
    times.begin()
    clock.now += 2.0
    times.add_collective(1.0, 8)
    times.has_batch()
    times.end()
    assert times.to_json()["times"] == {"steps": 1, "loop": 2.0, "reading": 2.0, "collectives": 0.0, "bytes": 8}


def test_steps_that_are_traced_or_have_no_batch_are_left_out(clock):
    times = StepTimes()
    times.begin()
    times.add_collective(1.0, 8)
    times.cancel()
    times.has_batch()
    times.end()
    assert times.to_json() == {"times": {}, "steps": []}


def test_the_slowest_and_the_last_steps_are_kept(clock):
    times = StepTimes()
    for number in range(10_000):
        step(times, clock, own=5.0 if number == 17 else 0.01)
    kept = times.to_json()["steps"]
    assert len(kept) <= 256
    assert [each[0] for each in kept][-128:] == list(range(9873, 10_001))
    assert 18 in [each[0] for each in kept]


def test_a_step_costs_little():
    times, started = StepTimes(), time.perf_counter()
    for _ in range(10_000):
        times.begin()
        times.has_batch()
        times.end()
    assert time.perf_counter() - started < 2.0  # 200 us a step, a hundred times what it takes
