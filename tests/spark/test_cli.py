"""The command line on a real cluster, with a stub in place of TensorFlow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clusters import StandaloneCluster
from helpers import WORKER_PATH

MISSING = str(Path(__file__).parent.parent / "stubs_missing")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = StandaloneCluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.close()


def call(cluster, *words, cwd=None):
    env = {name: value for name, value in os.environ.items() if name != "SPARK_HOME"}
    command = [sys.executable, "-m", "spark_tensorflow_distributor", words[0], "--master", cluster.url, "--cpu"]
    more = ["--conf", "spark.cores.max=8", "--conf", "spark.ui.enabled=false", *words[1:]]
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=200, env=env, cwd=cwd)
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done


def test_doctor_describes_both_hosts_and_what_is_wrong(cluster):
    done = call(cluster, "doctor", "--num-slots", "8", "--json", "--env", f"PYTHONPATH={MISSING}")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert {task["host"] for task in found["tasks"]} == {"127.0.0.1", "127.0.0.2"}
    assert [task["rank"] for task in found["tasks"]] == list(range(8))
    assert all(task["driver"] and not task["unreachable"] and not task["listener"] for task in found["tasks"])
    assert sum("tensorflow" in task for task in found["tasks"]) == 2  # once per host
    problems = [finding["text"] for finding in found["findings"] if finding["status"] == "problem"]
    assert len(problems) == 2, problems
    assert all("TensorFlow cannot be imported on 127.0.0." in text for text in problems)
    assert found["settings"]["spark.master"] == cluster.url
    assert found["slots"] == 8


def test_doctor_says_that_there_are_too_few_slots(cluster):
    settings = ["--conf", "spark.executor.instances=2", "--timeout", "60"]
    done = call(cluster, "doctor", "--num-slots", "9", *settings, "--env", f"PYTHONPATH={WORKER_PATH}")
    assert done.returncode == 1
    assert "problem  InsufficientSlotsError: The run needs 9 Spark tasks" in done.stdout
    assert "would not start" in done.stdout
    assert "127.0.0.2, rank(s)" in done.stdout  # the slots that exist were looked at


def test_doctor_refuses_what_a_run_refuses(cluster):
    done = call(cluster, "doctor", "--num-slots", "2", "--conf", "spark.dynamicAllocation.enabled=true",
                "--conf", "spark.dynamicAllocation.shuffleTracking.enabled=true")  # fmt: skip
    assert done.returncode == 1
    assert "SPARK-24942" in done.stdout
    done = call(cluster, "doctor", "--num-slots", "2", "--conf", "tensorflow.spark.distributor.workerPorts=twenty")
    assert done.returncode == 1
    assert "tensorflow.spark.distributor.workerPorts is 'twenty'" in done.stdout


def test_run_runs_a_script_on_all_workers(cluster, tmp_path):
    (tmp_path / "train.py").write_text(
        "import sys\nfrom spark_tensorflow_distributor import get_context\n"
        "print('arguments', sys.argv[1:], get_context().rank, get_context().world_size)\n"
        "if '--fail' in sys.argv: raise ValueError('as asked')\n"
    )
    stub = ["--env", f"PYTHONPATH={WORKER_PATH}", "--env", "TF_USE_LEGACY_KERAS=1", "--report", "report.html"]
    done = call(cluster, "run", "--num-slots", "2", *stub, "train.py", "--epochs", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in range(2):
        assert f"arguments ['--epochs', '5'] {rank} 2" in done.stdout
    assert "Run succeeded" in done.stdout
    assert 'class="stfd"' in (tmp_path / "report.html").read_text()
    done = call(cluster, "run", "--num-slots", "2", *stub, "train.py", "--fail", cwd=tmp_path)
    assert done.returncode == 1
    assert "ValueError: as asked" in done.stderr
    assert "Run failed" in done.stdout
