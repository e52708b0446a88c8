"""Three hosts with Spark, and a driver on a fourth, for all tests of this folder."""

import pytest
from hosts import Hosts, why_not

from faults import Driver, weights


@pytest.fixture(scope="session")
def hosts(tmp_path_factory):
    reason = why_not()
    if reason:
        pytest.skip(f"no hosts here: {reason}")
    folder = tmp_path_factory.mktemp("hosts")
    with Hosts(folder, workers=3, cores=1, number=2) as made:
        yield made


@pytest.fixture(scope="session")
def shared_driver(hosts):
    driver = Driver(hosts)
    try:
        driver.result(None, 60)
        yield driver
    finally:
        driver.close()


@pytest.fixture
def events(tmp_path):
    """A folder in which the workers of a run tell how far they are."""
    folder = tmp_path / "events"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def reference(hosts, shared_driver, tmp_path_factory):
    """The weights and the history of a run that nothing happens to."""
    events = tmp_path_factory.mktemp("reference")
    told = shared_driver.result(shared_driver.start(events, max_restarts=1, checkpoint_every="5 steps", pause=0))
    assert "error" not in told, told
    return weights(events), told["history"]
