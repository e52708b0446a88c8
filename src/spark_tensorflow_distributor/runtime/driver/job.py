"""Runs the Spark job of a launch on its own thread."""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from .addresses import executors_reach
from .spark import SparkGateway

Row = tuple[int, str, int, bytes]


class SparkJob:
    """One Spark job on its own thread.

    Args:
        gateway: The session.
        frame: The DataFrame to collect.
        description: Shown in Spark's web UI if the user has set no description.
        collect: Returns the rows of the frame.

    Attributes:
        error: What the action raised, or None.
        rows: The action's result, once it has ended.
    """

    def __init__(
        self,
        gateway: SparkGateway,
        frame: Any,
        description: str,
        collect: Callable[[Any], list[Any]] | None = None,
    ) -> None:
        self._gateway = gateway
        self._collect = collect or _collect
        self._frame = frame
        self._description = description
        self._tag = f"spark-tensorflow-distributor-{threading.get_ident()}-{time.time_ns()}"
        self.error: BaseException | None = None
        self.rows: list[Any] = []
        self._on_end: Callable[[], None] = lambda: None
        self._thread: threading.Thread | None = None

    def start(self, on_end: Callable[[], None]) -> None:
        """Start the job; its thread calls ``on_end`` when it has ended."""
        self._on_end = on_end
        # The caller's job group, description and pool apply to the run as to any other action.
        self._thread = self._gateway.thread(self._run, "spark-tensorflow-job", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def join(self, seconds: float) -> None:
        if self._thread is not None:
            self._thread.join(seconds)

    def is_running_unseen(self, addresses: Sequence[tuple[str, int]]) -> bool:
        """Return whether the tasks are running although none has connected to the driver's channel at ``addresses``."""
        if self._gateway.is_connect:
            return not executors_reach(self._gateway.spark, addresses)
        return any(active for _, active in self._gateway.stages(self._tag))

    def is_computing(self, num_tasks: int) -> bool:
        """Return whether Spark is still computing the tasks' input; assumed under Connect, which does not expose it."""
        if self._gateway.is_connect:
            return True
        # The workers' tasks start all at once and are a whole stage; any other stage that runs computes their input.
        return any(
            active and (tasks, active) != (num_tasks, num_tasks) for tasks, active in self._gateway.stages(self._tag)
        )

    def cancel(self) -> None:
        """Cancel the job. The session and its other jobs continue."""
        with contextlib.suppress(Exception):  # a stopped session has no job left to cancel
            if self._gateway.is_connect:
                self._gateway.spark.interruptTag(self._tag)
            else:
                self._gateway.spark.sparkContext.cancelJobsWithTag(self._tag)

    def _run(self) -> None:
        try:
            if self._gateway.is_connect:
                self._gateway.spark.addTag(self._tag)
            else:
                context = self._gateway.spark.sparkContext
                context.addJobTag(self._tag)
                if context.getLocalProperty("spark.job.description") is None:
                    context.setJobDescription(self._description)
            self.rows = self._collect(self._frame)
        except BaseException as error:
            self.error = error
        finally:
            self._frame = None
            self._on_end()


def _collect(frame: Any) -> list[Row]:
    """Collect the rows, through Arrow if possible, because it does not copy the chunks of a large result row by row."""
    if not hasattr(frame, "toArrow"):
        return [(row[0], row[1], row[2], bytes(row[3])) for row in frame.collect()]
    columns = [column.to_pylist() for column in frame.toArrow().columns]
    return list(zip(*columns, strict=True))
