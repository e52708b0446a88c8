"""Three hosts with Spark, and a driver on a fourth one, for all tests in this folder."""

import os
import subprocess

import pytest
from hosts import Hosts, why_not

from faults import Driver, trainers, weights
from helpers import wait_until


@pytest.fixture(scope="session")
def hosts(tmp_path_factory):
    reason = why_not()
    if reason:
        pytest.skip(f"no hosts here: {reason}")
    folder = tmp_path_factory.mktemp("hosts")
    # Small disks that tests can fill. Mounted now, because the hosts do not see later mounts.
    disks = {folder / f"h{host}" / "local": "64m" for host in (1, 2, 3)} | {folder / "small": "64k"}
    for disk, size in disks.items():
        disk.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "stfd", disk], check=True)
    try:
        with Hosts(folder, workers=3, cores=1, number=2) as made:
            yield made
    finally:
        for disk in disks:
            subprocess.run(["umount", "-l", disk], check=True)


@pytest.fixture(scope="session")
def shared_driver(hosts):
    driver = Driver(hosts)
    yield driver
    driver.close()


@pytest.fixture
def events(tmp_path):
    """The folder to which the workers of a run write their events."""
    folder = tmp_path / "events"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def reference(shared_driver, tmp_path_factory):
    """Return the weights and the history of an undisturbed run; ``reference(epochs=1)`` passes other arguments."""
    known = {}

    def look(**arguments):
        key = tuple(sorted(arguments.items()))
        if key not in known:
            events = tmp_path_factory.mktemp("reference")
            options = {"max_restarts": 1, "checkpoint_every": "5 steps", "pause": 0, **arguments}
            outcome = shared_driver.result(shared_driver.start(events, **options))
            assert "error" not in outcome, outcome
            known[key] = weights(events), outcome["history"]
        return known[key]

    return look


@pytest.fixture
def driver(hosts, shared_driver):
    """A driver. Before and after each test, all slots are free and no trainer remains."""
    shared_driver.open()
    yield shared_driver
    # Besides Spark, only fork servers may be running.
    assert shared_driver.probe(3) == 3
    wait_until(lambda: not trainers(hosts), 10)
    assert trainers(hosts) == {}
    for host in (1, 2, 3):
        local = hosts.folder / f"h{host}" / "local"
        left = [str(path) for path in local.rglob("*") if path.is_file() and "blockmgr" not in str(path)]
        assert [path for path in left if "userFiles" not in path] == []
        assert os.listdir(hosts.folder / f"h{host}" / "tmp") == []


@pytest.fixture
def free_hosts(hosts, shared_driver, reference):
    """Hosts whose slots are all free: the shared driver, whose application would hold them, is closed."""
    reference()
    shared_driver.close()
    return hosts
