"""The table of docs/reliability.md: faults injected into training on three hosts, and their outcomes."""

import os
import signal
import time

import pytest

from faults import OPTIONS, check_group_ends, check_same, trainers, wait_for, weights
from helpers import wait_until

# A cold start of three hosts takes half a minute on a machine with two cores, and several times that on a busy one.
pytestmark = pytest.mark.timeout(900)


def first_trainer(hosts):
    """Wait for a trainer, and return its pid."""
    assert wait_until(lambda: trainers(hosts), 90)
    return next(iter(trainers(hosts)))


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
    check_group_ends(events)
    outcome = driver.result(run)
    check_same(events, outcome, reference)
    # At most one interval of five steps, and the steps in progress, are lost.
    resumed = outcome["attempts"][1]["resumed"][0]
    assert resumed["epoch"] * 14 + resumed["step"] >= 14


@pytest.mark.skipif(os.environ.get("ENGINE") == "tensorflow", reason="TensorFlow's collectives are not encrypted")
def test_encrypted_training(hosts, driver, events, reference):
    """Gradients, output and checkpoints are encrypted, before and after a fault."""
    run = driver.start(events, conf={"tensorflow.spark.distributor.protection": "privacy"}, **OPTIONS)
    kill_trainer(hosts, int(wait_for(events, "step-0-1")))
    check_group_ends(events)
    check_same(events, driver.result(run), reference)


def test_a_host_dies_and_comes_back(hosts, driver, events, reference):
    run = driver.start(events, **OPTIONS)
    host = hosts.host_of(int(wait_for(events, "step-0-1")))
    hosts.kill_host(host)
    check_group_ends(events)
    time.sleep(3)
    hosts.start_worker(host)
    outcome = driver.result(run)
    check_same(events, outcome, reference)
    assert outcome["workers"] == 3


def test_a_host_dies_permanently(hosts, driver, events, reference):
    reference(dropout=False)
    run = driver.start(events, **OPTIONS, min_slots=2, dropout=False)
    host = hosts.host_of(int(wait_for(events, "step-0-1")))
    hosts.kill_host(host)
    check_group_ends(events)
    outcome = driver.result(run)
    hosts.start_worker(host)
    check_same(events, outcome, reference, dropout=False)
    assert outcome["workers"] == 2


def test_a_link_is_down_permanently(hosts, driver, events, reference):
    reference(dropout=False)
    run = driver.start(events, **OPTIONS, min_slots=2, dropout=False)
    host = hosts.host_of(int(wait_for(events, "step-0-1")))
    hosts.set_link(host, up=False)
    try:
        outcome = driver.result(run)
    finally:
        hosts.kill_host(host)
        hosts.set_link(host, up=True)
        hosts.start_worker(host)
    check_same(events, outcome, reference, dropout=False)
    assert outcome["workers"] == 2
    assert outcome["attempts"][0]["kinds"]["1"] == "lost"


def test_a_link_is_down_for_five_seconds(hosts, driver, events, reference):
    run = driver.start(events, **OPTIONS, log_dir=f"{events}/logs")
    host = hosts.host_of(int(wait_for(events, "step-0-1")))
    hosts.set_link(host, up=False)
    time.sleep(5)
    hosts.set_link(host, up=True)
    outcome = driver.result(run)
    check_same(events, outcome, reference)
    assert len(outcome["attempts"]) == 1
    # Every line that a worker wrote below its log_dir, on its own host, has reached the driver.
    logs = {path.name: list(map(int, path.read_text().split())) for path in (events / "logs").iterdir()}
    assert logs == {f"rank{rank}": list(range(1, 57)) for rank in range(3)}


def test_a_poor_link(hosts, driver, events, reference):
    with hosts.poor_link(2, delay=0.1, loss=0.01):  # 200 ms for a round trip
        outcome = driver.result(driver.start(events, **OPTIONS, epochs=1))
    check_same(events, outcome, reference, epochs=1)
    assert len(outcome["attempts"]) == 1


@pytest.mark.parametrize("stall_timeout", [15, None])  # the first two steps trace, on a busy machine
def test_a_trainer_is_stopped(driver, events, reference, stall_timeout):
    """The driver names the suspended rank; the other workers are only waiting."""
    run = driver.start(events, **OPTIONS, stall_timeout=stall_timeout)
    os.kill(int(wait_for(events, "step-0-1")), signal.SIGSTOP)
    outcome = driver.result(run)
    check_same(events, outcome, reference)
    first = outcome["attempts"][0]
    assert (first["root"], first["kinds"]["1"]) == (1, "stalled")


def test_a_rank_hangs(driver, events):
    """Run without restarts, to check the error. On a busy machine, the first step, which traces, takes many seconds."""
    run = driver.start(events, stall_timeout=20, faults=[{"rank": 2, "at": 20, "do": "hang"}])
    outcome = driver.result(run)
    assert outcome["error"] == "TrainingFailedError"
    assert "Rank 2 is behind" in outcome["message"]
    assert "it is at inject (" in outcome["message"].split("Threads of rank 0")[0]
    assert "Rank 0 is waiting for rank 2" in outcome["message"]
    assert "Threads of rank 1" in outcome["message"]


@pytest.mark.parametrize(
    ("fault", "kind"), [("raise", "exception"), ("exit", "exit"), ("memory", "exception"), ("kill", "signal")]
)
def test_a_rank_fails_once(driver, events, reference, fault, kind):
    run = driver.start(events, **OPTIONS, faults=[{"rank": 1, "at": 20, "do": fault}])
    wait_for(events, "step-0-1")
    check_group_ends(events)
    outcome = driver.result(run)
    check_same(events, outcome, reference)
    first = outcome["attempts"][0]
    assert first["root"] == 1
    assert first["kinds"]["1"] == kind


def test_the_same_exception_at_the_same_step(driver, events):
    faults = [{"rank": 1, "at": 20, "do": "raise", "attempt": attempt} for attempt in range(3)]
    outcome = driver.result(driver.start(events, **OPTIONS, faults=faults))
    assert outcome["error"] == "TrainingFailedError"
    assert "RuntimeError" in outcome["cause"]
    assert len(outcome["attempts"]) == 2
    assert "the same exception twice at the same step (epoch 2, after step 5)" in outcome["notes"][-1]


def test_the_disk_of_the_rows_is_full(hosts, driver, events):
    disk = hosts.folder / "h1" / "local"
    filler = disk / "filler"
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    filler.write_bytes(bytes(free - (120 << 10)))
    try:
        outcome = driver.result(driver.start(events, rows=0))
    finally:
        filler.unlink()
    assert outcome["error"] in ("DataError", "ClusterError"), outcome["traceback"]
    assert "spark.local.dir" in outcome["message"]


def test_the_disk_of_the_checkpoints_is_full(hosts, driver, events, reference):
    small_disk = hosts.folder / "small"
    outcome = driver.result(driver.start(events, **OPTIONS, checkpoint_dir=str(small_disk)))
    check_same(events, outcome, reference)
    (attempt,) = outcome["attempts"]
    assert any("could not be written: OSError: [Errno 28]" in text for text in attempt["warnings"])
    # The first checkpoint still exists, and there is no partial file.
    assert sorted(os.listdir(small_disk)) == ["stfd-finished.json", "stfd-fit0-00000000.npz"]


@pytest.mark.parametrize("place", ["driver", "folder"])
def test_the_chief_dies_while_writing_a_checkpoint(driver, events, reference, tmp_path, place):
    where = {"checkpoint_dir": str(tmp_path / "checkpoints")} if place == "folder" else {}
    faults = [{"rank": 0, "at": 18, "do": "half a checkpoint"}]
    outcome = driver.result(driver.start(events, **OPTIONS, **where, faults=faults))
    check_same(events, outcome, reference)
    resumed = outcome["attempts"][1]["resumed"][0]
    assert resumed["epoch"] * 14 + resumed["step"] >= 14
    if place == "folder":
        assert [name for name in os.listdir(tmp_path / "checkpoints") if name.startswith(".")] == []


def test_the_chief_dies_while_returning_the_value(driver, events, reference):
    outcome = driver.result(driver.start(events, **OPTIONS, value_kills=True))
    check_same(events, outcome, reference)
    assert outcome["attempts"][1]["resumed"][0]["epoch"] == 4


def test_a_host_dies_during_start_up(hosts, driver, events, reference):
    run = driver.start(events, **OPTIONS)
    kill_executor(hosts, first_trainer(hosts))
    check_same(events, driver.result(run), reference)


def test_a_host_dies_while_receiving_rows(hosts, driver, events, tmp_path):
    # The order of the rows depends on the folder.
    options = {**OPTIONS, "checkpoint_dir": str(tmp_path / "checkpoints"), "dropout": False}
    whole = driver.result(driver.start(events, **options, rows=0.3))
    expected = weights(events)
    run = driver.start(events, **options, rows=0.3)
    kill_executor(hosts, first_trainer(hosts))
    outcome = driver.result(run)
    check_same(events, outcome, lambda: (expected, whole["history"]))
    assert len(outcome["attempts"]) == 2


def test_a_second_fault_during_the_relaunch(hosts, driver, events, reference):
    run = driver.start(events, **OPTIONS)
    kill_executor(hosts, int(wait_for(events, "step-0-1")))
    kill_trainer(hosts, int(wait_for(events, "began-1-2")))
    outcome = driver.result(run)
    check_same(events, outcome, reference)
    assert len(outcome["attempts"]) == 3


def test_one_of_two_concurrent_runs_fails(driver, events, reference, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    good = driver.start(events, num_slots=2, dropout=False)
    bad = driver.start(other, num_slots=1, dropout=False, faults=[{"rank": 0, "at": 10, "do": "raise"}])
    assert driver.result(bad)["error"] == "TrainingFailedError"
    check_same(events, driver.result(good), reference, dropout=False)
