"""The table of docs/reliability.md: what is done to a training on three hosts, and what comes of it."""

import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from faults import Driver, order_of, wait_for, weights
from helpers import wait_until

# A cold start of three hosts takes a machine with two cores half a minute, and a busy one a few times that.
pytestmark = pytest.mark.timeout(900)

FORK_SERVER = "forkserver.main"


@pytest.fixture
def driver(hosts, shared_driver):
    """A driver before and after which everything is in order."""
    shared_driver.open()
    yield shared_driver
    # The slots are free, and no trainer is left: nothing but fork servers runs beside Spark.
    assert shared_driver.probe(3) == 3
    wait_until(lambda: not trainers(hosts), 10)
    assert trainers(hosts) == {}
    for host in (1, 2, 3):
        local = hosts.folder / f"h{host}" / "local"
        left = [str(path) for path in local.rglob("*") if path.is_file() and "blockmgr" not in str(path)]
        assert [path for path in left if "userFiles" not in path] == []
        assert os.listdir(hosts.folder / f"h{host}" / "tmp") == []


def trainers(hosts):
    """The processes that fork servers have forked."""
    found = {}
    for host in (1, 2, 3):
        servers = hosts.pids(host, FORK_SERVER)
        for pid in servers:
            try:
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent in servers:
                found[pid] = host
    return found


def first_trainer(hosts):
    """The pid of a trainer, as soon as there is one."""
    assert wait_until(lambda: trainers(hosts), 90)
    return next(iter(trainers(hosts)))


def check_same(events, told, reference, **arguments):
    """The run ended as if nothing had happened."""
    assert "error" not in told, f"{told['message']}\n{told['traceback']}"
    expected, history = reference(**arguments)
    for mine, theirs in zip(weights(events), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert told["history"].keys() == history.keys()
    for name, values in history.items():
        np.testing.assert_allclose(told["history"][name], values, atol=1e-4, err_msg=name)


OPTIONS = {"max_restarts": 2, "checkpoint_every": "5 steps"}


def kill_trainer(hosts, pid):
    os.kill(pid, signal.SIGKILL)


def kill_python_worker(hosts, pid):
    for each in hosts.python_workers(hosts.host_of(pid)):
        os.kill(each, signal.SIGKILL)


def kill_executor(hosts, pid):
    for each in hosts.executors(hosts.host_of(pid)):
        os.kill(each, signal.SIGKILL)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("fault", [kill_trainer, kill_python_worker, kill_executor])
def test_a_process_is_killed(hosts, driver, events, reference, fault, rank):
    run = driver.start(events, **OPTIONS)
    fault(hosts, int(wait_for(events, f"step-0-{rank}")))
    told = driver.result(run)
    check_same(events, told, reference)
    # Not more than one interval of five steps, and what was under way, is lost of the twenty.
    resumed = told["attempts"][1]["resumed"][0]
    assert resumed["epoch"] * 14 + resumed["step"] >= 14


def test_a_host_dies_and_comes_back(hosts, driver, events, reference):
    run = driver.start(events, **OPTIONS)
    host = hosts.host_of(int(wait_for(events, "step-0-1")))
    hosts.kill_host(host)
    time.sleep(3)
    hosts.start_worker(host)
    told = driver.result(run)
    check_same(events, told, reference)
    assert told["workers"] == 3


def test_a_host_dies_for_good(hosts, driver, events, reference):
    reference(dropout=False)
    run = driver.start(events, **OPTIONS, min_slots=2, dropout=False)
    host = hosts.host_of(int(wait_for(events, "step-0-1")))
    hosts.kill_host(host)
    told = driver.result(run)
    hosts.start_worker(host)
    check_same(events, told, reference, dropout=False)
    assert told["workers"] == 2


def test_a_link_is_down_for_good(hosts, driver, events, reference):
    reference(dropout=False)
    run = driver.start(events, **OPTIONS, min_slots=2, dropout=False)
    host = hosts.host_of(int(wait_for(events, "step-0-1")))
    hosts.set_link(host, up=False)
    try:
        told = driver.result(run)
    finally:
        hosts.kill_host(host)
        hosts.set_link(host, up=True)
        hosts.start_worker(host)
    check_same(events, told, reference, dropout=False)
    assert told["workers"] == 2
    assert told["attempts"][0]["kinds"]["1"] == "lost"


def test_a_link_is_down_for_five_seconds(hosts, driver, events, reference):
    run = driver.start(events, **OPTIONS)
    host = hosts.host_of(int(wait_for(events, "step-0-1")))
    hosts.set_link(host, up=False)
    time.sleep(5)
    hosts.set_link(host, up=True)
    told = driver.result(run)
    check_same(events, told, reference)
    assert len(told["attempts"]) == 1


def test_a_poor_link(hosts, driver, events, reference):
    with hosts.poor_link(2, delay=0.1, loss=0.01):  # 200 ms for a round trip
        told = driver.result(driver.start(events, **OPTIONS, epochs=1))
    check_same(events, told, reference, epochs=1)
    assert len(told["attempts"]) == 1


@pytest.mark.parametrize("stall_timeout", [4, None])
def test_a_trainer_is_stopped(driver, events, reference, stall_timeout):
    """TensorFlow notices it, too, when its heartbeats are missing for twenty seconds; not who it was."""
    run = driver.start(events, **OPTIONS, stall_timeout=stall_timeout)
    os.kill(int(wait_for(events, "step-0-1")), signal.SIGSTOP)
    told = driver.result(run)
    check_same(events, told, reference)
    first = told["attempts"][0]
    assert (first["root"], first["kinds"]["1"]) == (1, "stalled")


def test_a_rank_hangs(driver, events):
    """Without restarts, for what the user is told."""
    run = driver.start(events, stall_timeout=6, faults=[{"rank": 2, "at": 20, "do": "hang"}])
    told = driver.result(run)
    assert told["error"] == "TrainingFailedError"
    assert "Rank 2 is behind" in told["message"]
    assert "in suffer" in told["message"].split("Threads of rank 0")[0]
    assert "Rank 0 waits for rank 2" in told["message"]
    assert "Threads of rank 1" in told["message"]


@pytest.mark.parametrize(
    ("fault", "kind"), [("raise", "exception"), ("exit", "exit"), ("memory", "exception"), ("kill", "signal")]
)
def test_a_rank_fails_once(driver, events, reference, fault, kind):
    told = driver.result(driver.start(events, **OPTIONS, faults=[{"rank": 1, "at": 20, "do": fault}]))
    check_same(events, told, reference)
    first = told["attempts"][0]
    assert first["root"] == 1
    assert first["kinds"]["1"] == kind


def test_the_same_exception_at_the_same_step(driver, events):
    faults = [{"rank": 1, "at": 20, "do": "raise", "attempt": attempt} for attempt in range(3)]
    told = driver.result(driver.start(events, **OPTIONS, faults=faults))
    assert told["error"] == "TrainingFailedError"
    assert "RuntimeError" in told["cause"]
    assert len(told["attempts"]) == 2
    assert "the same exception twice at the same step (epoch 2, after step 5)" in told["notes"][-1]


def test_the_disk_of_the_rows_is_full(hosts, driver, events):
    disk = hosts.folder / "h1" / "local"
    filler = disk / "filler"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    filler.write_bytes(bytes(free - (120 << 10)))
    try:
        told = driver.result(driver.start(events, rows=0))
    finally:
        filler.unlink()
    assert told["error"] in ("DataError", "ClusterError"), told["traceback"]
    assert "spark.local.dir" in told["message"]


def test_the_disk_of_the_checkpoints_is_full(hosts, driver, events, reference):
    small_disk = hosts.folder / "small"
    told = driver.result(driver.start(events, **OPTIONS, checkpoint_dir=str(small_disk)))
    check_same(events, told, reference)
    (attempt,) = told["attempts"]
    assert any("could not be written: OSError: [Errno 28]" in text for text in attempt["warnings"])
    # The first one is there still, and nothing half-written.
    assert sorted(os.listdir(small_disk)) == ["stfd-finished.json", "stfd-fit0-00000000.npz"]


@pytest.mark.parametrize("place", ["driver", "folder"])
def test_the_chief_dies_while_it_writes_a_checkpoint(driver, events, reference, tmp_path, place):
    where = {"checkpoint_dir": str(tmp_path / "checkpoints")} if place == "folder" else {}
    faults = [{"rank": 0, "at": 18, "do": "half a checkpoint"}]
    told = driver.result(driver.start(events, **OPTIONS, **where, faults=faults))
    check_same(events, told, reference)
    resumed = told["attempts"][1]["resumed"][0]
    assert resumed["epoch"] * 14 + resumed["step"] >= 14
    if place == "folder":
        assert [name for name in os.listdir(tmp_path / "checkpoints") if name.startswith(".")] == []


def test_the_chief_dies_while_it_returns_the_value(driver, events, reference):
    told = driver.result(driver.start(events, **OPTIONS, value_kills=True))
    check_same(events, told, reference)
    assert told["attempts"][1]["resumed"][0]["epoch"] == 4


def test_a_host_dies_during_the_start(hosts, driver, events, reference):
    run = driver.start(events, **OPTIONS)
    kill_executor(hosts, first_trainer(hosts))
    check_same(events, driver.result(run), reference)


def test_a_host_dies_while_it_is_given_rows(hosts, driver, events, tmp_path):
    # The order of the rows goes by the folder.
    options = {**OPTIONS, "checkpoint_dir": str(tmp_path / "checkpoints"), "dropout": False}
    whole = driver.result(driver.start(events, **options, rows=0.3))
    expected = weights(events)
    run = driver.start(events, **options, rows=0.3)
    kill_executor(hosts, first_trainer(hosts))
    told = driver.result(run)
    check_same(events, told, lambda: (expected, whole["history"]))
    assert len(told["attempts"]) == 2


def test_a_second_fault_in_the_relaunch(hosts, driver, events, reference):
    run = driver.start(events, **OPTIONS)
    kill_executor(hosts, int(wait_for(events, "step-0-1")))
    kill_trainer(hosts, int(wait_for(events, "began-1-2")))
    told = driver.result(run)
    check_same(events, told, reference)
    assert len(told["attempts"]) == 3


def test_two_runs_at_once_of_which_one_fails(driver, events, reference, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    good = driver.start(events, num_slots=2, dropout=False)
    bad = driver.start(other, num_slots=1, dropout=False, faults=[{"rank": 0, "at": 10, "do": "raise"}])
    assert driver.result(bad)["error"] == "TrainingFailedError"
    check_same(events, driver.result(good), reference, dropout=False)


# With drivers of their own.


def once(hosts, events, **kwargs):
    """A driver program that trains and ends."""
    return Driver(hosts, "once", json.dumps(order_of("run", events, **kwargs)))


def wait_until_free(hosts):
    def left():
        return {**trainers(hosts), **hosts.pids(0, "fault_driver.py")}

    wait_until(lambda: not left(), 20)
    return left()


@pytest.fixture
def free_hosts(hosts, shared_driver, reference):
    """All slots, which the shared driver's application would hold."""
    reference()
    shared_driver.close()
    return hosts


def test_the_driver_dies_and_is_run_again(free_hosts, events, reference, tmp_path):
    folder = tmp_path / "checkpoints"
    options = {"checkpoint_dir": str(folder), "checkpoint_every": "5 steps"}
    named = None  # the checkpoint that was damaged last
    for watch, damage in ((20, None), (32, truncated), (44, with_a_bit_flipped)):
        driver = once(free_hosts, events, watch=watch, **options)
        wait_for(events, "step-0-0")
        driver.kill()
        driver.close()
        assert wait_until_free(free_hosts) == {}
        places = re.findall(r"goes on in epoch (\d+), after (\d+) steps", "".join(driver.lines))
        # Of the twelve steps since the driver was killed before, and the ten that a damaged checkpoint may cost.
        assert [watch - 22 < 14 * (int(epoch) - 1) + int(step) for epoch, step in places] == [True] * (watch > 20)
        check_left_out([line for line in driver.lines if "is left out" in line], named)
        kept = sorted(folder.glob("stfd-fit0-*.npz"))
        assert len(kept) in (2, 3)  # the driver may die before the oldest is removed
        if damage is not None:
            named = kept[-1].name
            damage(kept[-1])
        (events / "step-0-0").unlink()
    last = once(free_hosts, events, **options)
    told = last.result("run")
    last.close()
    check_same(events, told, reference)
    (attempt,) = told["attempts"]
    assert len(attempt["resumed"]) == 1
    check_left_out([text for text in attempt["warnings"] if "is left out" in text], named)


def check_left_out(warnings, name):
    """One that is damaged is named, once; and no other."""
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
    told = driver.result("run", 20)
    assert told["error"] == "KeyboardInterrupt"
    assert time.monotonic() - started < 8
    driver.close()
    assert wait_until_free(free_hosts) == {}
