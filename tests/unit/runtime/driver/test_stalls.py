"""Finding the rank that keeps the others waiting."""

import subprocess
import sys
from pathlib import Path

import pytest

from spark_tensorflow_distributor.runtime.driver.stalls import explain, user_code

WAITING = """Thread 0x00007f01 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 327 in wait

Current thread 0x00007f02 (most recent call first):
  File "/site-packages/tensorflow/python/eager/execute.py", line 53 in quick_execute
  File "/home/me/train.py", line 30 in train
"""
READING = """Thread 0x00007f03 (most recent call first):
  File "/home/me/rows.py", line 12 in rows
  File "/site-packages/tensorflow/python/data/ops/from_generator_op.py", line 200 in generator_next_fn

Current thread 0x00007f02 (most recent call first):
  File "/site-packages/tensorflow/python/eager/execute.py", line 53 in quick_execute
  File "/home/me/train.py", line 30 in train
"""
IN_TENSORFLOW = "train (/home/me/train.py, line 30), in tensorflow/python/eager/execute.py"
AT = {"fit": 0, "epoch": 1, "step": 6}

# A small trainer: started by `python -c`, with our modules in memory and TensorFlow in site-packages.
START = """
import os, sys
sys.path[:0] = [{lib!r}, {jobs!r}]
exec(compile('''
def run_trainer():
    import train
    train.train()
''', "<spark_tensorflow_distributor>/runtime/trainer/main.py", "exec"))
run_trainer()
"""
EXECUTE = """
import faulthandler, os, signal, sys, time

faulthandler.register(signal.SIGUSR2, sys.stderr, all_threads=True)

def quick_execute():
    os.kill(os.getpid(), signal.SIGUSR2)

def call(function):
    function()

def wait():
    time.sleep(0.2)
    quick_execute()
"""


@pytest.fixture
def stacks(tmp_path):
    """Runs a training script and returns the stacks that ``faulthandler`` wrote, as in a trainer."""
    lib, jobs = tmp_path / "lib" / "site-packages", tmp_path / "tensorflow-jobs"
    (lib / "tensorflow").mkdir(parents=True)
    (lib / "tensorflow" / "__init__.py").touch()
    (lib / "tensorflow" / "execute.py").write_text(EXECUTE)
    jobs.mkdir()

    def run(script):
        (jobs / "train.py").write_text(script)
        program = START.format(lib=str(lib), jobs=str(jobs))
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
        assert "most recent call first" in done.stderr
        return done.stderr

    return run


def shown(code):
    return str(code).replace(str(Path(code.file).parent), "~")


def test_a_user_file_may_have_tensorflow_in_its_path(stacks):
    code = user_code(
        stacks("import tensorflow.execute, os, signal\ndef train():\n  os.kill(os.getpid(), signal.SIGUSR2)")
    )
    assert code.file.endswith("/tensorflow-jobs/train.py")
    assert shown(code) == "train (~/train.py, line 3)"
    assert not code.in_tensorflow


def test_library_modules_in_memory_are_not_user_code(stacks):
    hook = "def on_step():\n  from tensorflow import execute\n  execute.quick_execute()"
    script = f"exec(compile({hook!r}, '<spark_tensorflow_distributor>/training/step_hooks.py', 'exec'))\n"
    code = user_code(stacks(script + "def train():\n  on_step()"))
    assert shown(code) == "train (~/train.py, line 3), in tensorflow/execute.py"
    assert code.in_tensorflow


def test_idle_pools_are_not_user_code(stacks):
    text = stacks(
        "from multiprocessing.pool import ThreadPool\n"
        "from tensorflow import execute\n"
        "def train():\n"
        "  with ThreadPool(2):\n"
        "    execute.wait()"
    )
    assert "multiprocessing/pool.py" in text
    assert shown(user_code(text)) == "train (~/train.py, line 5), in tensorflow/execute.py"


def test_a_tensorflow_callback_in_another_thread_precedes_a_waiting_main_thread(stacks):
    text = stacks(
        "import threading, time\n"
        "from tensorflow import execute\n"
        "def rows():\n"
        "  time.sleep(2)\n"
        "def own_thread():\n"
        "  time.sleep(2)\n"
        "def train():\n"
        "  threading.Thread(target=execute.call, args=(rows,), daemon=True).start()\n"
        "  threading.Thread(target=own_thread, daemon=True).start()\n"
        "  execute.wait()"
    )
    assert shown(user_code(text)) == "rows (~/train.py, line 4)"


def test_another_thread_is_used_if_the_main_thread_has_left_user_code(stacks):
    text = stacks(
        "import atexit, threading, time\n"
        "from tensorflow import execute\n"
        "def loader():\n"
        "  time.sleep(2)\n"
        "def train():\n"
        "  threading.Thread(target=loader, daemon=True).start()\n"
        "  atexit.register(execute.wait)"
    )
    assert shown(user_code(text)) == "loader (~/train.py, line 4)"


def test_a_library_that_the_users_code_calls_is_named(stacks):
    text = stacks(
        "import subprocess, tensorflow.execute, os\n"
        "def train():\n"
        "  subprocess.run(['sh', '-c', 'kill -USR2 $PPID; sleep 0.2'])"
    )
    code = user_code(text)
    assert shown(code) == "train (~/train.py, line 3), in subprocess.py"
    assert not code.in_tensorflow


@pytest.mark.parametrize("file", ["/tmp/ipykernel_12/34.py", "<ipython-input-1-abc>", "<stdin>", "<string>"])
def test_functions_in_notebooks_and_shells_are_user_code(stacks, file):
    source = "def step():\n  execute.quick_execute()"
    script = f"from tensorflow import execute\nexec(compile({source!r}, {file!r}, 'exec'))\ndef train():\n  step()"
    assert str(user_code(stacks(script))) == f"step ({file}, line 2), in tensorflow/execute.py"


def test_no_user_code():
    assert user_code("") is None
    assert user_code('Thread 0x1 (most recent call first):\n  File "<frozen runpy>", line 88 in _run_code\n') is None


def test_a_rank_in_its_own_input_is_behind():
    stacks = {0: {"stacks": WAITING}, 1: {"stacks": READING}}
    behind, sentences = explain([0, 1], {0: (20, AT), 1: (20, AT)}, stacks, {})
    assert behind == 1
    assert sentences[1] == "Rank 1 is behind (epoch 2, after step 6): it is at rows (/home/me/rows.py, line 12)."
    assert sentences[0] == f"Rank 0 is waiting for rank 1 (epoch 2, after step 6): it is at {IN_TENSORFLOW}."


def test_steps_take_precedence_over_stacks():
    stacks = {0: {"stacks": WAITING}, 1: {"stacks": READING}}
    behind, sentences = explain([0, 1], {0: (19, AT), 1: (20, AT)}, stacks, {})
    assert behind == 0
    assert sentences[0] == f"Rank 0 is behind (epoch 2, after step 6): it is at {IN_TENSORFLOW}."
    _, sentences = explain([0, 1], {0: (19, {**AT, "fit": 1}), 1: (20, AT)}, stacks, {})
    assert sentences[0].startswith("Rank 0 is behind (fit 2, epoch 2, after step 6): ")


def test_no_rank_is_blamed_if_all_wait_in_the_same_step():
    stacks = {rank: {"stacks": WAITING} for rank in (0, 1)}
    _, sentences = explain([0, 1], {0: (20, AT), 1: (20, AT)}, stacks, {})
    assert sentences == {
        0: f"No rank is clearly behind. Rank 0 (epoch 2, after step 6): it is at {IN_TENSORFLOW}.",
        1: f"Rank 1 (epoch 2, after step 6): it is at {IN_TENSORFLOW}.",
    }


def test_a_stopped_process_is_behind():
    stacks = {0: {"stacks": READING}, 1: {"stacks": ""}}
    behind, sentences = explain([0, 1], {}, stacks, {0: {"state": "sleeping"}, 1: {"state": "stopped"}})
    assert behind == 1
    assert "its process is stopped (by a signal or a debugger)" in sentences[1]


def test_a_host_that_does_not_answer_is_behind():
    behind, sentences = explain([0, 1], {}, {0: {"stacks": WAITING}}, {})
    assert behind == 1
    assert "its host does not answer" in sentences[1]
