"""A run in the driver's own process (``local_mode``), with its report and callbacks."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ...config import RunnerConfig
from ...context import set_custom_loop
from ...data.frames import Frames
from ...training.local_fits import follow_fits
from ..failures import Failure
from ..metric_values import reported_entry
from ..specs import WorkerReport, tensorflow_version
from .callbacks import CallbackList
from .control import RunControl
from .epochs import EpochEvents
from .local import run_locally
from .report import AttemptReport, RunReport
from .tracked_run import follow, new_report

_one_at_a_time = threading.RLock()


class LocalRun:
    """A run that can be executed once.

    Args:
        config: The runner's arguments.
        name: The name of the function.
        arguments: Its arguments, DataFrames included.
        gpus: Entries of CUDA_VISIBLE_DEVICES; None for CPU training.
        callbacks: The runner's callbacks.

    Attributes:
        report: The report, which is updated during the run.
    """

    def __init__(
        self,
        config: RunnerConfig,
        name: str,
        arguments: Mapping[str, Any],
        gpus: Sequence[str] | None,
        callbacks: CallbackList,
    ) -> None:
        self.report = new_report(config, name, arguments, 1)
        self._config, self._gpus, self._callbacks = config, gpus, callbacks
        self._epochs = LocalEpochs(self.report, callbacks)
        self._rows: dict[str, int] = {}

    def execute(self, function: Callable[..., Any] | str, kwargs: Mapping[str, Any], frames: Frames) -> Any:
        """Train; return the function's value, or raise its exception unchanged.

        Runs of several threads, such as those of a CrossValidator, wait for each other: the environment, the context
        and the random seeds belong to the process. A run inside a run of the same thread does not wait.

        Args:
            function: The training function, or the path of a script.
            kwargs: Its arguments, without DataFrames.
            frames: The DataFrames among its arguments.
        """

        def call() -> Any:
            with self._attempt(), self._epochs.received():
                return run_locally(self._config, function, kwargs, self._gpus, frames, self._note_rows)

        with _one_at_a_time:
            return follow(self.report, self._callbacks, call)

    def _note_rows(self, shards: Mapping[str, Any]) -> None:
        self._rows = {name: shard.num_rows for name, shard in shards.items()}
        self._data_came = time.monotonic()

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[None]:
        """Add the only attempt to the report, and call its callbacks."""
        self._began = self._data_came = time.monotonic()
        began = time.time() - self.report.started_at
        self._callbacks.call("on_attempt_begin", 0)
        failure, how = None, "ok"
        try:
            yield
        except Exception as error:
            failure, how = Failure.from_exception(0, socket.gethostname(), "exception", error), "exception"
            raise
        except BaseException:
            how = "interrupted"
            raise
        finally:
            end = time.monotonic()
            attempt = AttemptReport(0, end - self._began, began=began)
            attempt.workers[0] = self._worker(end, how)
            if failure is not None:
                attempt.failures[0], attempt.root_cause = failure.to_worker_failure(), 0
            self.report.attempts.append(attempt)
            self.report.stopped_by = self._epochs.stopped_by
            self._callbacks.call("on_attempt_end", attempt)

    def _worker(self, end: float, how: str) -> WorkerReport:
        return WorkerReport(
            rank=0,
            host=socket.gethostname(),
            partition=0,
            pid=os.getpid(),
            devices=tuple(self._gpus or ("CPU",)),
            threads=os.cpu_count() or 1,
            tensorflow=tensorflow_version(),
            seconds={"data": self._data_came - self._began, "train": end - self._data_came},
            rows=self._rows,
            exit=how,
        )


class LocalEpochs:
    """Records the epochs that this process trains, and decides with the callbacks whether another epoch follows.

    Args:
        report: The report of the run.
        callbacks: The runner's callbacks.
    """

    def __init__(self, report: RunReport, callbacks: CallbackList) -> None:
        self._control = RunControl()
        self._events = EpochEvents(report, 0, callbacks, self._control)
        self._count = 0
        self._last_report = time.monotonic()

    @property
    def stopped_by(self) -> str:
        return self._control.stopped_by

    @contextlib.contextmanager
    def received(self) -> Iterator[None]:
        """Receive the epochs of ``fit``, and the metrics of ``get_context().report``, in this context."""
        self._last_report = time.monotonic()
        previous = set_custom_loop(self)
        try:
            with follow_fits(self._take):
                yield
        finally:
            set_custom_loop(previous)

    def report(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record the metrics of a custom loop; see ``WorkerContext.report``."""
        now = time.monotonic()
        self._take(reported_entry(step, metrics, now - self._last_report))
        self._last_report = now

    def should_stop(self) -> bool:
        """Return whether a callback has ended the custom loop."""
        return None in self._control.stops["fits"]

    def _take(self, entry: dict[str, Any]) -> bool:
        """Record an entry; return whether its ``fit`` should end."""
        self._events.take(0, {"number": self._count, "entries": [entry]})
        self._count += 1
        self._events.new_requests()  # there are no workers to inform; this logs the request
        return entry["fit"] in self._control.stops["fits"]
