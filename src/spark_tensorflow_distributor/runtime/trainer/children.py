"""Resets signal handlers in processes that the training function forks from the trainer."""

import os
import signal

# Signals that end a process unless it handles them, or for which the trainer has its own handler.
_SIGNALS = ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2")


def reset_signals_in_children() -> None:
    """Give forked children the default signal handlers, except for handlers that the program itself has set.

    TensorFlow handles SIGTERM by waking a thread, which a forked child does not have. ``multiprocessing.Pool`` ends
    its processes with that signal, and would wait for them forever.
    """
    os.register_at_fork(after_in_child=_reset_signals)


def _reset_signals() -> None:
    for number in (getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)):
        # Python only knows of handlers that were set in Python.
        if signal.getsignal(number) in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
