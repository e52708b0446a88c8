"""Processes that the training function forks."""

import subprocess
import sys


def test_forked_children_have_default_signal_handlers_except_the_programs_own():
    """In a process of its own, because what is registered for forks stays registered."""
    program = """
import ctypes, os, signal
from spark_tensorflow_distributor.runtime.trainer.children import reset_signals_in_children
libc = ctypes.CDLL(None)
handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: None)
libc.signal(signal.SIGTERM, handler)  # behind Python's back, as TensorFlow does
signal.signal(signal.SIGUSR1, lambda *_: os._exit(7))
reset_signals_in_children()
ends = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    pid = os.fork()
    if pid == 0:
        os.kill(os.getpid(), number)
        signal.sigtimedwait([], 0.2)
        os._exit(0)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(ends)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[-15, 7]", done.stderr
