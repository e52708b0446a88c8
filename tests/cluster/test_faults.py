"""The table of docs/reliability.md: what is done to a training on three hosts, and what comes of it."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from faults import wait_for, weights

FORK_SERVER = "forkserver.main"


def is_mine(folder):
    return sorted(name for name in os.listdir(folder) if not name.startswith("spark-"))


@pytest.fixture
def driver(hosts, shared_driver):
    """A driver before and after which everything is in order."""
    yield shared_driver
    # The slots are free, and no trainer is left: nothing but fork servers runs beside Spark.
    assert shared_driver.probe(3) == 3
    end = time.monotonic() + 10
    while (left := trainers(hosts)) and time.monotonic() < end:
        time.sleep(0.2)
    assert left == {}
    for host in (1, 2, 3):
        local = hosts.folder / f"h{host}" / "local"
        left = [str(path) for path in local.rglob("*") if path.is_file() and "blockmgr" not in str(path)]
        assert [path for path in left if "userFiles" not in path] == []


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


def check_same(events, told, reference):
    """The run ended as if nothing had happened."""
    assert "error" not in told, f"{told['message']}\n{told['traceback']}"
    expected, history = reference
    for mine, theirs in zip(weights(events), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    assert told["history"].keys() == history.keys()
    for name, values in history.items():
        np.testing.assert_allclose(told["history"][name], values, atol=1e-5, err_msg=name)


OPTIONS = {"max_restarts": 2, "checkpoint_every": "5 steps"}


def kill_trainer(hosts, pid):
    os.kill(pid, signal.SIGKILL)


def kill_python_worker(hosts, pid):
    for each in hosts.python_workers(hosts.host_of(pid)):
        os.kill(each, signal.SIGKILL)


def kill_executor(hosts, pid):
    for each in hosts.executors(hosts.host_of(pid)):
        os.kill(each, signal.SIGKILL)


@pytest.mark.parametrize("fault", [kill_trainer, kill_python_worker, kill_executor])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_is_killed(hosts, driver, events, reference, fault, rank):
    run = driver.start(events, **OPTIONS)
    pid = int(wait_for(events, f"step-0-{rank}"))
    fault(hosts, pid)
    told = driver.result(run)
    check_same(events, told, reference)
    assert len(told["attempts"]) == 2
    # Not more than one interval of five steps, and the step that was under way, is lost.
    resumed = told["attempts"][1]["resumed"][0]
    assert resumed["epoch"] * 14 + resumed["step"] >= 14
