"""The rows of the fault table in which the driver itself ends; each test starts its own drivers."""

import json
import os
import re
import time

import pytest

from faults import OPTIONS, Driver, check_same, order_of, wait_for, wait_until_free
from helpers import wait_until

pytestmark = pytest.mark.timeout(900)


def once(hosts, events, **kwargs):
    """Start a driver program that trains once and ends."""
    return Driver(hosts, "once", json.dumps(order_of("run", events, **kwargs)))


def test_the_driver_is_killed_and_restarted(free_hosts, events, reference, tmp_path):
    folder = tmp_path / "checkpoints"
    options = {"checkpoint_dir": str(folder), "checkpoint_every": "5 steps"}
    named = None  # the last checkpoint that was damaged
    for watch, damage in ((20, None), (32, truncated), (44, with_a_bit_flipped)):
        # Slow steps: killing a driver takes seconds on a busy machine, and the training must not end before that.
        driver = once(free_hosts, events, watch=watch, pause=0.4, **options)
        wait_for(events, "step-0-0")
        driver.kill()
        driver.close()
        assert wait_until_free(free_hosts) == {}
        places = re.findall(r"Resuming fit\(\) 1 at epoch (\d+), step (\d+) from", "".join(driver.lines))
        # At least twelve steps after the driver was last killed, less ten that a damaged checkpoint may cost.
        assert [watch - 22 < 14 * (int(epoch) - 1) + int(step) for epoch, step in places] == [True] * (watch > 20)
        check_skipped([line for line in driver.lines if "Skipping checkpoint" in line], named)
        kept = sorted(folder.glob("stfd-fit0-*.npz"))
        assert len(kept) in (2, 3)  # the driver may die before the oldest is removed
        if damage is not None:
            named = kept[-1].name
            damage(kept[-1])
        (events / "step-0-0").unlink()
    last = once(free_hosts, events, **options)
    outcome = last.result("run")
    last.close()
    check_same(events, outcome, reference)
    (attempt,) = outcome["attempts"]
    assert len(attempt["resumed"]) == 1
    check_skipped([text for text in attempt["warnings"] if "Skipping checkpoint" in text], named)


def check_skipped(warnings, name):
    """Check that the warnings name the damaged checkpoint once, and no other."""
    assert len(warnings) == (name is not None), warnings
    assert all(name in text for text in warnings)


def truncated(path):
    os.truncate(path, path.stat().st_size // 2)


def with_a_bit_flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def test_ctrl_c(free_hosts, events):
    driver = once(free_hosts, events, **OPTIONS)
    wait_for(events, "step-0-1")
    driver.interrupt()
    started = time.monotonic()
    outcome = driver.result("run", 20)
    assert outcome["error"] == "KeyboardInterrupt"
    assert time.monotonic() - started < 8
    driver.close()
    assert wait_until_free(free_hosts) == {}


def test_executors_that_come_late(hosts, shared_driver, events, reference):
    """A run waits for its first executor while another application holds all slots."""
    reference()
    shared_driver.open()
    assert shared_driver.probe(3) == 3
    late = once(hosts, events, pause=0, max_restarts=1, checkpoint_every="5 steps", start_timeout=300)
    try:
        waits = "Waiting for executors: 0 registered, with 0 of 3 slots. Giving up after start_timeout=300 s"
        assert wait_until(lambda: any(waits in line for line in late.lines), 90), late.output()
    finally:
        shared_driver.close()
    outcome = late.result("run")
    late.close()
    check_same(events, outcome, reference)
