"""Which rank keeps the others waiting."""

from spark_tensorflow_distributor.runtime.driver.stalls import explain, own_code

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
"""
AT = {"fit": 0, "epoch": 1, "step": 6}


def test_who_waits_in_tensorflow_has_no_own_code():
    assert own_code(WAITING) == ""
    assert own_code(READING) == "rows (/home/me/rows.py, line 12)"
    assert own_code("") == ""


def test_a_rank_that_stands_in_its_own_input_is_behind():
    stacks = {0: {"stacks": WAITING}, 1: {"stacks": READING}}
    behind, words = explain([0, 1], {0: (20, AT), 1: (20, AT)}, stacks, {})
    assert behind == 1
    assert words[1] == "Rank 1 is behind (epoch 2, after step 6): it stands in rows (/home/me/rows.py, line 12)."
    assert words[0] == "Rank 0 waits for rank 1 (epoch 2, after step 6), in TensorFlow."


def test_fewer_steps_tell_more_than_stacks():
    stacks = {0: {"stacks": WAITING}, 1: {"stacks": READING}}
    assert explain([0, 1], {0: (19, AT), 1: (20, AT)}, stacks, {})[0] == 0


def test_a_stopped_process_is_behind():
    stacks = {0: {"stacks": READING}, 1: {"stacks": ""}}
    behind, words = explain([0, 1], {}, stacks, {0: {"state": "sleeping"}, 1: {"state": "stopped"}})
    assert behind == 1
    assert "its process is stopped (by a signal or a debugger)" in words[1]


def test_a_host_that_does_not_answer_is_behind():
    behind, words = explain([0, 1], {}, {0: {"stacks": WAITING}}, {})
    assert behind == 1
    assert "its host does not answer" in words[1]
