"""Connections to the ports of TensorFlow's servers from hosts that do not belong to the group."""

import json
import subprocess
import sys

import pytest

from faults import CONF, ROOT, wait_for

pytestmark = pytest.mark.timeout(600)

RUNS = ("closed", "filtered", "custom", "open")
KNOCK = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3).close()"


def connects(hosts, host, address):
    """Return what happens to a connection from a host to an address."""
    command = hosts.command(host, sys.executable, "-c", KNOCK, *address.split(":"))
    done = subprocess.run(command, capture_output=True, text=True, env=hosts.environment(host))
    if done.returncode == 0:
        return "connects"
    return "dropped" if "timed out" in done.stderr else "refused" if "refused" in done.stderr else done.stderr


def test_only_the_hosts_of_the_group_reach_tensorflow(hosts, shared_driver, tmp_path):
    shared_driver.close()
    settings = {"spark.master": hosts.master, "spark.driver.host": hosts.address(0), **CONF}
    program = str(ROOT / "tests" / "programs" / "port_run.py")
    for name in RUNS:
        (tmp_path / name).mkdir()
    process = subprocess.Popen(
        hosts.command(0, sys.executable, program, json.dumps(settings), str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=hosts.environment(0),
    )
    reached = {}
    try:
        for name in RUNS:
            ports = [wait_for(tmp_path / name, f"port-{rank}") for rank in range(3)]
            # Host 0 runs the driver, and is not allowed to connect to the workers' ports.
            reached[name] = [(connects(hosts, 0, port), connects(hosts, 1, port)) for port in ports]
            (tmp_path / name / "go").touch()
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    results = [json.loads(line[7:]) for line in output.splitlines() if line.startswith("RESULT ")]
    assert [each["run"] for each in results] == list(RUNS), output[-3000:]
    assert all(not each["warnings"] for each in results)
    assert len({each["loss"] for each in results[:2]}) == 1
    # Without a listening socket, there is no filter either: the kernel refuses every connection.
    assert reached["closed"] == [("refused", "refused")] * 3
    # A function may build its own strategy at any time, so its port stays open to the group.
    assert reached["filtered"] == reached["custom"] == [("dropped", "connects")] * 3
    assert reached["open"] == [("connects", "connects")] * 3
