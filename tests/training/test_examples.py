"""The examples run as a user would run them.

They take minutes, so they run weekly. Each change runs their parts: the demo runs flights.py, and the
notebooks tune trials and fit pipelines.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not os.environ.get("EVERY_GROUP"), reason="EVERY_GROUP=1 runs the whole examples")

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def test_flights_from_the_tables_to_scores():
    command = [sys.executable, str(EXAMPLES / "flights.py"), "--epochs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=560, env=os.environ)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    scores = {
        name: float(value) for name, value in re.findall(r"(Keras|[Ll]ogistic regression)\D*(0\.\d+)", done.stdout)
    }
    assert len(scores) == 2, done.stdout[-3000:]
    # Chance is 0.5; the baseline is deterministic.
    assert all(0.6 < value < 0.85 for value in scores.values()), scores


def test_a_keras_stage_beside_the_models_of_spark():
    quick = ["--epochs", "1", "--fraction", "0.05", "--trees", "3"]
    command = [sys.executable, str(EXAMPLES / "estimator.py"), *quick]
    done = subprocess.run(command, capture_output=True, text=True, timeout=560, env=os.environ)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    areas = {
        name: float(area)
        for name, area in re.findall(r"^(Keras.*?|logistic.*?|gradient.*?) +(0\.\d+)", done.stdout, re.M)
    }
    assert len(areas) == 4, done.stdout[-3000:]
    assert all(0.55 < area < 0.85 for area in areas.values()), areas


def test_tuning_prunes_trials_that_share_the_cluster():
    pytest.importorskip("optuna")
    command = [sys.executable, str(EXAMPLES / "tuning.py"), "--trials", "5", "--epochs", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=560, env=os.environ)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    trials = re.findall(r"trial \d+: .* (\d) epochs, (\w+)", done.stdout)
    assert len(trials) == 5, done.stdout[-3000:]
    assert all(int(epochs) == 4 for epochs, state in trials if state == "complete")
    pruned = [int(epochs) for epochs, state in trials if state == "pruned"]
    assert pruned, trials
    assert min(pruned) < 4, trials
    assert float(re.search(r"best accuracy: (\S+)", done.stdout)[1]) > 0.8
