"""A run in the background."""

import threading
from types import TracebackType
from typing import Any

from ...errors import DistributorError
from .interrupts import first_interrupt_stops
from .report import RunReport
from .spark import SparkGateway
from .tracked_run import TrackedRun, without_frames
from .views.text import numbers


class RunHandle:
    """A run that :meth:`MirroredStrategyRunner.submit` has started. A thread on the driver runs it.

    Example::

        handle = runner.submit(train, learning_rate=0.001)
        while not handle.done():
            print(handle.report.metrics)
            time.sleep(10)
        model = handle.result()
    """

    def __init__(self, run: TrackedRun, gateway: SparkGateway) -> None:
        self._run = run
        self._finished = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        self._frames: TracebackType | None = None
        # Not a daemon thread, so that a program that ends waits for its runs, as for other threads.
        self._thread = gateway.thread(self._execute, "spark-tensorflow-run", daemon=False)
        self._thread.start()

    def _execute(self) -> None:
        try:
            self._value = self._run.execute()
        except DistributorError as error:  # result() raises it
            self._error = without_frames(error)
        except BaseException as error:
            self._error, self._frames = error, error.__traceback__
        finally:
            self._finished.set()

    @property
    def report(self) -> RunReport:
        """The report of the run; its history grows during the run."""
        return self._run.report

    def done(self) -> bool:
        """Return whether the run has ended, successfully or not."""
        return self._finished.is_set()

    def result(self, timeout: float | None = None) -> Any:
        """Wait until the run has ended; return what ``run`` would have returned.

        In a notebook, interrupting the kernel while waiting stops training as :meth:`stop` does, and interrupting it
        again cancels the run. Elsewhere an interrupt ends the waiting, and in a classic session also the run, because
        PySpark then cancels all jobs of the session.

        Args:
            timeout: How many seconds to wait at most. Default: no limit.

        Raises:
            TimeoutError: The run has not ended within ``timeout``; it continues.
            RunCancelledError: The run was cancelled.
            DistributorError: The errors of :meth:`MirroredStrategyRunner.run`.
        """
        with first_interrupt_stops(self._run.control):
            has_finished = self._finished.wait(timeout)
        if not has_finished:
            raise TimeoutError(f"The run has not ended within {timeout:g} s; it continues.")
        if self._error is not None:
            raise self._error.with_traceback(self._frames)  # without those of earlier calls
        return self._value

    def stop(self) -> None:
        """End training gracefully: every ``fit`` ends after its current epoch on all workers; the function continues.

        :meth:`result` then returns the function's value, typically the model. A custom loop sees the request through
        ``get_context().should_stop()``. It has no effect on a run that has ended, nor on workers that cannot reach the
        driver.
        """
        self._run.control.stop("RunHandle.stop()")

    def cancel(self) -> None:
        """End the run now, without a value; :meth:`result` raises :class:`RunCancelledError`. Does not wait."""
        self._run.control.cancel()

    def __repr__(self) -> str:
        report = self.report
        metrics = numbers(report.metrics)
        text = f"{report.function or 'run'} on {report.num_tasks} workers, {report.status}"
        return f"<RunHandle: {text}{': ' if metrics else ''}{metrics}>"
