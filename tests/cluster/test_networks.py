"""Runs on hosts with two networks, and with proxies in the environment."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hosts import Hosts, why_not

pytestmark = pytest.mark.timeout(900)
PROGRAM = Path(__file__).parent.parent / "programs" / "network_run.py"


@pytest.fixture
def hosts(tmp_path):
    reason = why_not()
    if reason:
        pytest.skip(f"no hosts here: {reason}")
    with Hosts(tmp_path, workers=2, cores=1, number=3) as made:
        made.add_network()
        yield made


def test_workers_meet_on_the_network_that_is_set_and_never_through_a_proxy(hosts):
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), f"http://{hosts.address(0)}:9")
    conf = {"spark.master": hosts.master, "spark.driver.host": hosts.address(0), "spark.cores.max": "2"}
    conf |= {"spark.executor.memory": "1g"}
    words = [sys.executable, str(PROGRAM), json.dumps(conf), json.dumps(proxies), "eth1"]
    done = subprocess.run(
        hosts.command(0, *words), env=hosts.environment(0), capture_output=True, text=True, timeout=600
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")] or [done.stderr[-4000:]]
    found = json.loads(line.removeprefix("RESULT "))
    for engine in ("tensorflow", "sockets"):
        addresses = {hosts.address(host, network=1) for host in (1, 2)}
        for name, expected in (
            (engine, addresses),
            (f"{engine}, IPv6", {f"[{hosts.ipv6_address(host)}]" for host in (1, 2)}),
        ):
            assert {worker.rpartition(":")[0] for worker in found[name]["workers"]} == expected
            # Four steps, each with gradients of 400 kB.
            assert found[name]["received"] > 4 * 400_000
    assert found["error"].startswith("ClusterError: The host 10.77.3.1")
    assert "has no address in 203.0.113.0/24" in found["error"]
    assert f"eth1 {hosts.address(1, network=1)}"[:12] in found["error"]
