"""The command line as documented, with TensorFlow."""

import os
import subprocess
import sys


def call(*words, cwd):
    env = {name: value for name, value in os.environ.items() if name != "SPARK_HOME"}
    command = [sys.executable, "-m", "spark_tensorflow_distributor", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=560, env=env, cwd=cwd)


def test_doctor_says_that_a_run_would_start(tmp_path):
    done = call("doctor", "--num-slots", "2", "--cpu", "--conf", "spark.ui.enabled=false", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "TensorFlow imported in" in done.stdout
    assert "The 2 workers can connect to each other." in done.stdout
    assert "problem" not in done.stdout
    assert done.stdout.endswith("A run with num_slots=2 on CPUs would start.\n")


def test_the_demo_tells_the_whole_story(tmp_path):
    done = call("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for words in ("prediction", "val_loss", "Run succeeded", "What to look at next"):
        assert words in done.stdout
    page = (tmp_path / "spark-tensorflow-demo.html").read_text()
    assert "<svg" in page
    assert "<script" not in page
