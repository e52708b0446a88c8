"""Strategies that the training function creates."""

import os
import subprocess
import sys

from helpers import STUBS


def test_the_function_gets_the_strategy_of_all_workers_with_one_warning_a_class():
    """In a process of its own, because the classes stay patched."""
    program = """
import tensorflow as tf
from spark_tensorflow_distributor.training.other_strategies import hand_out
from spark_tensorflow_distributor.training.strategy import socket_strategy

strategy, warnings = socket_strategy(None), []
hand_out(strategy, warnings.append)
for _ in range(2):
    assert tf.distribute.MirroredStrategy() is strategy
    assert tf.distribute.MultiWorkerMirroredStrategy(communication_options=None) is strategy
assert strategy.collectives.world_size == 1  # it has not been initialised again
print(*warnings, sep="\\n")
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([STUBS, *filter(None, [os.environ.get("PYTHONPATH")])])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, timeout=60)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    assert "MirroredStrategy. It gets the strategy of all workers instead" in lines[0]
    assert "MultiWorkerMirroredStrategy. It gets the strategy of all workers instead" in lines[1]
