"""The command line on Spark, with a stub in place of TensorFlow."""

import json
import os
import subprocess
import sys
from pathlib import Path

from clusters import StandaloneCluster
from helpers import WORKER_PATH

MISSING = str(Path(__file__).parent.parent / "stubs_missing")


def call(name, *words, cwd):
    env = {name: value for name, value in os.environ.items() if name != "SPARK_HOME"}
    command = [sys.executable, "-m", "spark_tensorflow_distributor", name, "--cpu", "--conf", "spark.ui.enabled=false"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=500, env=env, cwd=cwd)
    if name == "doctor":  # the workers of a run print warnings, because of the stub
        assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done


def test_doctor_on_a_cluster_with_too_few_slots_and_no_tensorflow(tmp_path):
    cluster = StandaloneCluster(tmp_path)
    try:
        # With the number of executors, the doctor waits for the second one, however slow the machine is.
        settings = ["cores.max=2", "executor.cores=1", "executor.instances=2", "executor.memory=512m"]
        size = [word for each in settings for word in ("--conf", f"spark.{each}")]
        words = ["--master", cluster.url, *size, "--num-slots=3", "--timeout=200", "--env", f"PYTHONPATH={MISSING}"]
        done = call("doctor", "--json", "--conf", "spark.driver.host=127.0.0.1", *words, cwd=tmp_path)
    finally:
        cluster.close()
    assert done.returncode == 1, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["slots"] == found["executors"] == 2
    assert found["settings"]["spark.master"] == cluster.url
    problems = [finding["text"] for finding in found["findings"] if finding["status"] == "problem"]
    assert problems[0].startswith("InsufficientSlotsError: The run needs 3 Spark tasks")
    assert all("TensorFlow cannot be imported on" in text for text in problems[1:])
    # The available slots have been examined.
    assert [task["rank"] for task in found["tasks"]] == [0, 1]
    assert all(task["driver"] and not task["unreachable"] and not task["listener"] for task in found["tasks"])
    hosts = {task["host"] for task in found["tasks"]}
    assert len(problems) - 1 == sum("tensorflow" in task for task in found["tasks"]) == len(hosts)
    assert found["would_start"] is False


def test_doctor_refuses_what_a_run_refuses(tmp_path):
    setting = "tensorflow.spark.distributor.workerPorts"
    done = call("doctor", "--num-slots", "1", "--conf", f"{setting}=twenty", cwd=tmp_path)
    assert done.returncode == 1, done.stderr[-3000:]
    assert f"problem  ClusterError: {setting} is 'twenty'" in done.stdout
    assert done.stdout.endswith("would not start: 1 problem(s), see above.\n")


def test_run_runs_a_script_on_all_workers(tmp_path):
    (tmp_path / "train.py").write_text(
        "import sys\n"
        "from spark_tensorflow_distributor import get_context\n"
        "print('arguments', sys.argv[1:], get_context().rank, get_context().world_size)\n"
        "if '--fail' in sys.argv: raise ValueError('as asked')\n"
    )
    stub = ["--env", f"PYTHONPATH={WORKER_PATH}", "--env", "TF_USE_LEGACY_KERAS=1", "--report", "report.html"]
    done = call("run", "--num-slots", "2", *stub, "train.py", "--epochs", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in range(2):
        assert f"arguments ['--epochs', '5'] {rank} 2" in done.stdout
    assert "Run succeeded" in done.stdout
    assert 'class="stfd"' in (tmp_path / "report.html").read_text()
    done = call("run", "--num-slots", "2", *stub, "train.py", "--fail", cwd=tmp_path)
    assert done.returncode == 1
    assert "ValueError: as asked" in done.stderr
    assert "Run failed" in done.stdout
