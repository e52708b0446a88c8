"""Measures where Keras' steps spend their time: waiting for a batch, in collectives, or computing."""

import heapq
import time
from collections import deque
from typing import Any

# Number of steps that are kept, however long training lasts.
_SLOWEST, _LAST = 128, 128

# The step's number, its start in Unix time, and the seconds of the whole step, of reading and of collectives.
Step = tuple[float, ...]


class StepTimes:
    """Adds up the times of steps. One object serves a process; it costs about a microsecond per step.

    Attributes:
        sees_collectives: Whether exchanges with the other workers are added; if not, they count as computing.
        fetches_in_graph: Whether batches are fetched within a graph, which must call ``has_batch`` itself.
    """

    def __init__(self) -> None:
        self.sees_collectives = self.fetches_in_graph = False
        self.steps = 0
        self.loop = self.reading = self.collectives = 0.0
        self.bytes = 0
        self._last: deque[Step] = deque(maxlen=_LAST)
        self._slowest: list[tuple[float, Step]] = []
        self._in_step: tuple[float, float] | None = None
        self._read = 0.0

    def add_collective(self, seconds: float, size: int) -> None:
        """Add an exchange with the other workers, in or outside of a step."""
        self.bytes += size
        if self._in_step is not None:
            self.collectives += seconds

    def begin(self) -> None:
        """Note that a step begins; it first waits for its batch."""
        self._in_step = (time.perf_counter(), self.collectives)
        self._read = 0.0

    def has_batch(self) -> None:
        """Note that the batch has arrived. Exchanges while waiting for it, about its size, count as reading."""
        if self._in_step is not None:
            began, collectives = self._in_step
            self._read = time.perf_counter() - began
            self.collectives = collectives

    def end(self) -> None:
        """Note that the step is done."""
        if self._in_step is None:
            return
        began, collectives_before = self._in_step
        self._in_step = None
        seconds, collectives = time.perf_counter() - began, self.collectives - collectives_before
        self.steps += 1
        self.loop += seconds
        self.reading += self._read
        step = (self.steps, time.time() - seconds, seconds, self._read, collectives)
        self._last.append(step)
        if len(self._slowest) < _SLOWEST:
            heapq.heappush(self._slowest, (seconds, step))
        elif seconds > self._slowest[0][0]:
            heapq.heapreplace(self._slowest, (seconds, step))

    def cancel(self) -> None:
        """Note that there was no batch, or that the step failed."""
        if self._in_step is not None:
            self.collectives = self._in_step[1]
            self._in_step = None

    def to_json(self) -> dict[str, Any]:
        """Return ``times`` and ``steps`` of a WorkerReport; both are empty if no step was measured."""
        if not self.steps:
            return {"times": {}, "steps": []}
        names = ("steps", "loop", "reading", *(("collectives", "bytes") if self.sees_collectives else ()))
        totals = {name: getattr(self, name) for name in names}
        steps = sorted({*self._last, *(step for _, step in self._slowest)})
        return {"times": totals, "steps": [[round(value, 6) for value in step] for step in steps]}


step_times = StepTimes()
