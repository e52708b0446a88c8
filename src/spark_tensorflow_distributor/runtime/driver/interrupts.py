"""Handles interrupts of a notebook's kernel during a run."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from .bar import in_notebook
from .control import INTERRUPT, RunControl


@contextlib.contextmanager
def first_interrupt_stops(control: RunControl) -> Iterator[None]:
    """In a notebook, let the first interrupt stop training gracefully, and the second one cancel the run.

    This replaces PySpark's own handler, which cancels all jobs of the session. Outside of notebooks, Ctrl-C keeps its
    usual meaning.

    Args:
        control: The run that the caller waits for.

    Raises:
        KeyboardInterrupt: At the second interrupt.
    """
    if not in_notebook() or threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupts = 0

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts > 1:
            control.cancel()
            raise KeyboardInterrupt
        # Print nothing here: the interrupted code may be printing. The thread that drives the run announces the stop.
        control.stop(INTERRUPT)

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if previous is None else previous)  # None: not set from Python
