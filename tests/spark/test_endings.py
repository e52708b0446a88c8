"""Runs that end in various ways leave neither processes nor files, and the session still works."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clusters import StandaloneCluster
from helpers import is_running, processes, wait_until

PROGRAMS = Path(__file__).parent.parent / "programs"


@pytest.fixture
def drive(tmp_path):
    """Return a function that starts a long run on a local master with a separate TMPDIR, and waits until it trains."""
    started = []

    def start(conf=None, *arguments):
        pids, temporary = tmp_path / "pids", tmp_path / "tmp"
        pids.mkdir()
        temporary.mkdir()
        settings = {"spark.master": "local[2]", "spark.local.dir": str(temporary), **(conf or {})}
        process = subprocess.Popen(
            [sys.executable, str(PROGRAMS / "long_run.py"), json.dumps(settings), str(pids), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TMPDIR": str(temporary)},
            start_new_session=True,
        )
        started.append(process)
        # Two trainers, their two children, and the shared fork server.
        assert wait_until(lambda: len(os.listdir(pids)) == 5 or process.poll() is not None, 90)
        return process, [int(pid) for pid in os.listdir(pids)], temporary

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


def result_of(process):
    out, _ = process.communicate(timeout=60)
    lines = [line for line in out.splitlines() if line.startswith("RESULT ")]
    return json.loads(lines[-1][7:]) if lines else out


def test_ctrl_c_leaves_nothing_behind_but_the_log_files(drive, tmp_path):
    process, pids, temporary = drive(None, str(tmp_path / "logs"))
    process.send_signal(signal.SIGINT)
    assert result_of(process) == {"interrupted": True, "rows": 10}
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "logs").iterdir()}
    assert sizes == {"rank0": 3_000_000, "rank1": 3_000_000}
    assert wait_until(lambda: not any(map(is_running, pids)))
    assert [path for path in temporary.rglob("*") if path.is_file()] == []


def test_workers_end_with_a_killed_driver(drive):
    process, pids, _ = drive()
    process.kill()
    assert wait_until(lambda: not any(map(is_running, pids)), 10)
    process.wait()


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def server_of(pids):
    """Return the fork server: the only process whose parent, a Spark worker, is not in the list."""
    (server,) = (pid for pid in pids if parent_of(pid) not in pids)
    return server


def test_a_killed_spark_worker_is_a_lost_worker(drive):
    process, pids, _ = drive()
    os.kill(parent_of(server_of(pids)), signal.SIGKILL)
    result = result_of(process)
    assert result["error"] == "TrainingFailedError", result
    assert "lost" in result["message"]
    assert "java:" not in result["message"]
    assert result["rows"] == 10
    assert wait_until(lambda: not any(map(is_running, pids)))


def test_a_killed_fork_server_fails_the_run(drive):
    process, pids, _ = drive()
    os.kill(server_of(pids), signal.SIGKILL)
    result = result_of(process)
    assert result["error"] == "TrainingFailedError", result
    assert "ran out of memory" in result["message"]
    assert wait_until(lambda: not any(map(is_running, pids)))


def test_a_killed_driver_or_executor_on_a_cluster(tmp_path):
    cluster = StandaloneCluster(tmp_path)
    try:
        pids = tmp_path / "pids"
        pids.mkdir()
        # One executor per worker with one core each, so that the two ranks run in different executors.
        conf = {"spark.executor.cores": "1", "spark.cores.max": "2", "spark.executor.memory": "512m"}
        driver = cluster.start_driver("long_run.py", str(pids), conf=conf)
        assert wait_until(lambda: len(os.listdir(pids)) == 6 or driver.poll() is not None, 90)
        running = [int(pid) for pid in os.listdir(pids)]
        driver.kill()
        assert wait_until(lambda: not any(map(is_running, running)), 10)
        driver.stdout.close()
        driver.wait()

        # Killing the executors resembles losing their hosts: the driver notices within seconds, and no trainer is left.
        for path in pids.iterdir():
            path.unlink()
        driver = cluster.start_driver("long_run.py", str(pids), conf=conf)
        assert wait_until(lambda: len(os.listdir(pids)) == 6 or driver.poll() is not None, 90)
        running = [int(pid) for pid in os.listdir(pids)]
        apps = os.listdir(tmp_path / "work")  # tells these executors from other clusters' on this machine
        executors = [pid for app in apps for pid in processes(f"CoarseGrainedExecutorBackend.*--app-id {app}")]
        assert len(executors) == 2, driver.communicate(timeout=60)[0]
        os.kill(max(executors), signal.SIGKILL)
        result = result_of(driver)
        assert result["error"] == "TrainingFailedError", result
        assert result["rows"] == 10
        assert wait_until(lambda: not any(map(is_running, running)), 10)
    finally:
        cluster.close()
